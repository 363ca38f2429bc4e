"""Packed codes as a picture: bytes by their bits, each in the colour of the code it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.plots.theme import MONO, Palette, empty, figure, palette
from qlab.quant.packing import BitMap

ROW = 26  # pixels of a byte
LETTER = 6.7  # pixels of one letter beside it
_TURN = ("float", "quantized", "gained", "range")  # colours of codes that follow each other


def bytes_picture(
    values: NDArray[np.uint8], bits: BitMap, contents: Sequence[Sequence[tuple[int, str]]], dark: bool, *,
    nibbles: bool = False,
) -> go.Figure:  # fmt: skip
    """A row for each byte, its highest bit on the left as numbers are written, and beside it what it holds.

    values: [b] the bytes; bits: whose bits they are; contents: [b] the codes in each with words for them. Codes that
    follow each other have different colours, and one that goes on in the next byte keeps its own. Bits that only fill
    up are grey. nibbles: whether to name the two halves.
    """
    if not len(values):
        return empty("There are no bytes: this weight holds no numbers.", dark)
    colours = palette(dark)
    digits = np.unpackbits(np.asarray(values)[:, None], axis=1)  # highest first
    code, bit = bits.code[:, ::-1], bits.bit[:, ::-1]
    right = int(LETTER * max(sum(len(text) + 4 for _, text in row) for row in contents)) + 20
    made = figure(dark, ROW * len(values) + 64, room={"t": 56, "b": 8, "l": 108, "r": right})
    made.add_heatmap(
        z=np.where(code < 0, len(_TURN), code % len(_TURN)),
        x=np.arange(8),
        y=np.arange(len(values)),
        zmin=-0.5,
        zmax=len(_TURN) + 0.5,
        colorscale=_turns(colours),
        showscale=False,
        xgap=1,
        ygap=3,
        text=[[str(d) for d in row] for row in digits],
        texttemplate="%{text}",
        textfont={"family": MONO, "color": colours.text},
        hovertext=_told(bits.byte, digits, code, bit),
        hovertemplate="%{hovertext}<extra></extra>",
    )
    for row, parts in enumerate(contents):
        made.add_annotation(
            text="  ".join(f'<span style="color:{_colour(code, colours)}">■</span> {text}' for code, text in parts),
            x=1, y=row, xref="paper", yref="y", xanchor="left", xshift=10, showarrow=False, align="left",
            font={"color": colours.text, "size": 12},
        )  # fmt: skip
    bare: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": ""}
    made.update_xaxes(
        title_text="bit of the byte" + " (7 to 4: high nibble, 3 to 0: low nibble)" * nibbles, side="top",
        tickvals=np.arange(8), ticktext=[str(7 - i) for i in range(8)], range=[-0.5, 7.5], fixedrange=True, **bare,
    )  # fmt: skip
    names = [f"byte {byte:,}  {value:02X}" for byte, value in zip(bits.byte, values, strict=True)]
    made.update_yaxes(
        tickvals=np.arange(len(values)), ticktext=names, range=[len(values) - 0.5, -0.5], fixedrange=True,
        tickfont={"family": MONO, "color": colours.text}, **bare,
    )  # fmt: skip
    return made


def _colour(code: int, colours: Palette) -> str:
    return str(getattr(colours, _TURN[code % len(_TURN)]))


def _turns(colours: Palette) -> list[list[Any]]:
    shades = [colours.wash(name, 0.45) for name in _TURN] + [colours.wash("neutral", 0.2)]
    edges = np.linspace(0, 1, len(shades) + 1)
    return [[float(edge), shade] for i, shade in enumerate(shades) for edge in edges[i : i + 2]]


def _told(byte: NDArray[Any], digits: NDArray[Any], code: NDArray[Any], bit: NDArray[Any]) -> list[list[str]]:
    """What hovering over each bit says."""
    return [
        [
            f"bit {7 - i} of byte {byte[row]:,} is {digits[row, i]}: "
            + ("fills up the last byte" if code[row, i] < 0 else f"bit {bit[row, i]} of code {code[row, i]:,}")
            for i in range(8)
        ]
        for row in range(len(byte))
    ]
