"""Cells that are small pictures: accuracy as a dot with its interval on a common axis, bits as blocks.

They are SVG in the address of an image, which a table of Streamlit shows without asking anybody for it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING

from qlab.plots.theme import Palette, palette

if TYPE_CHECKING:
    from qlab.lab.compared import Line
    from qlab.ui.compare import Compared

WIDTH, TALL = 132, 29  # pixels; Streamlit draws a picture as tall as fits a row


def intervals(shown: Compared, dark: bool) -> dict[str, str]:
    """Run -> accuracy as a dot with its interval, as an image address; all runs on one axis, float as a line."""
    lines = {i: line for i, line in shown.lines.items() if line.accuracy is not None}
    ends = [
        end
        for line in lines.values()
        for end in (line.accuracy, line.low, line.high, line.float_accuracy)
        if end is not None
    ]
    if not ends:
        return {}
    low, high = min(ends), max(ends)
    room = max(high - low, 0.005)

    def place(share: float) -> float:
        return 10 + (WIDTH - 20) * (share - low) / room

    return {i: _picture(line, place, palette(dark)) for i, line in lines.items()}


def _picture(line: Line, place: Callable[[float], float], colours: Palette) -> str:
    assert line.accuracy is not None
    middle, x = TALL / 2, place(line.accuracy)
    # Symbols and colours are those of the chart.
    integer = line.backend == "integer"
    colour = colours.neutral if line.dropped else colours.gained if integer else colours.quantized
    parts = []
    if line.float_accuracy is not None:
        parts.append(
            f'<path d="M{place(line.float_accuracy):.1f} 3V{TALL - 3}" stroke="{colours.float}" stroke-width="1.5"/>'
        )
    if line.low is not None and line.high is not None:
        parts.append(
            f'<path d="M{place(line.low):.1f} {middle}H{place(line.high):.1f}" stroke="{colour}" stroke-width="2"/>'
        )
    if integer:
        parts.append(f'<circle cx="{x:.1f}" cy="{middle}" r="6" fill="{colour}"/>')
    else:
        parts.append(f'<path d="M{x - 7:.1f} {middle}l7 -7l7 7l-7 7z" fill="{colour}"/>')
    return _image(WIDTH, parts)


def bits(line: Line, dark: bool) -> str:
    """Blocks for the bits of weights, filled, and under them those of activations, open; a line where it is float."""
    colours = palette(dark)
    parts = []
    for count, y, filled in ((line.weight_bits, 3, True), (line.activation_bits, 16, False)):
        if count is None:
            parts.append(f'<path d="M1 {y + 5}H70" stroke="{colours.float}" stroke-width="2"/>')
            continue
        step = 9 if count <= 8 else 4.5
        paint = f'fill="{colours.quantized}"' if filled else f'stroke="{colours.quantized}"'
        inset = 0 if filled else 0.5
        parts += [
            f'<rect x="{1 + i * step + inset:.1f}" y="{y + inset}" width="{step - 2 - 2 * inset:.1f}" '
            f'height="{10 - 2 * inset}" {paint}/>'
            for i in range(count)
        ]
    return _image(74, parts)


def _image(width: int, parts: list[str]) -> str:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TALL}" viewBox="0 0 {width} {TALL}" '
        f'fill="none">{"".join(parts)}</svg>'
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
