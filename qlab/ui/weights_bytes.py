"""How the integers of a weight lie in bytes: which bits belong to which code, and that unpacking gives all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from qlab.config import QConfigMapping
from qlab.metrics import MINUS, write
from qlab.ui import say, state, weights, weights_known, widgets
from qlab.ui.weights_source import Shown

if TYPE_CHECKING:
    from qlab.quant.cells import Cells
    from qlab.quant.packing import BitMap
    from qlab.ui.weights_known import Known, Packed

BYTES = 16  # shown at a time
NIBBLE = 4


def draw(shown: Shown, of: Known, found: Cells) -> None:
    """found: the window of the picture above, where the button leads to."""
    from qlab.plots.weights_bytes import bytes_picture
    from qlab.quant.packing import bits_in_bytes

    packed = weights_known.packed(shown)
    _verdict(of, packed)
    if of.tensor.bits == 8:
        _fewer_bits()
    if not len(packed.values):
        return
    first = _first(of, len(packed.values), found)
    bits = bits_in_bytes(packed.count, of.tensor.bits, first, BYTES)
    values = packed.values[bits.byte]
    codes = of.tensor.codes.reshape(-1)
    names = [in_short(bits, row, codes, of.tensor.bits) for row in range(len(values))]
    widgets.chart(
        bytes_picture(values, bits, names, widgets.dark(), nibbles=of.tensor.bits == NIBBLE), key="weights_bytes",
        alt=f"Bytes {bits.byte[0]:,} to {bits.byte[-1]:,} bit by bit, coloured by the code that each bit belongs to",
    )  # fmt: skip
    say.caption(_legend(of))
    with st.expander("As a table"):
        _table(of, bits, values, codes)


def _verdict(of: Known, packed: Packed) -> None:
    """Whether unpacking gave all codes, and how much room packing saves."""
    size, count, bits = len(packed.values), packed.count, of.tensor.bits
    if packed.same == count:
        say.success(f"Packed into {size:,} bytes and unpacked again: all {count:,} integers are the same.")
    else:
        st.error(f"Unpacked again, {count - packed.same:,} of {count:,} integers differ from those that were packed.")
    if bits == 8:
        say.markdown("At 8 bits **a byte is a code**: nothing has to be packed.")
        return
    whole = "" if 8 % bits == 0 else " The width does not divide 8, so some codes lie across two bytes."
    say.markdown(
        f"{bits} bits each, one after the other, lowest bits first: {write('size', size)} instead of "
        f"{write('size', count)} with a byte for each.{whole}"
    )


def _first(of: Known, size: int, found: Cells) -> int:
    """The first byte that is shown, with the ways to move it."""
    from qlab.quant.cells import packed_index

    first = min(int(st.session_state[weights.BYTE]), size - 1)
    if size <= BYTES:
        return 0
    at = int(packed_index(of.shape, of.axis, found.channel[0, 0], found.position[0, 0])) * of.tensor.bits // 8
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        widgets.kept(
            st.number_input, "First byte", 0, size - 1, value=first, store=_go, key=f"weights_byte_{size}", step=BYTES,
            width=150, help=f"Shows other bytes, {BYTES} of {size:,} at a time.",
        )  # fmt: skip
        st.button(
            "Go to the window above", key="weights_to_window", on_click=_go, args=(at,), disabled=at == first,
            help=f"Shows the byte that holds the first integer of the picture above: byte {at:,}.",
        )  # fmt: skip
    return first


def _go(byte: int | None) -> None:
    if byte is not None:
        st.session_state[weights.BYTE] = int(byte)


def _fewer_bits() -> None:
    """A button that opens this page under a preset whose weights have fewer bits."""
    from qlab.preset import presets

    default = state.mapping().default
    name = fewer("static" if default is None else default.mode)
    st.button(
        f"Look at 4-bit integers: {name}" if _bits(presets[name]) == NIBBLE else f"Look at fewer bits: {name}",
        key="weights_fewer", on_click=weights.go_to, args=(name,),
        help=f"Makes this the current config: {presets.about(name).title}, {presets.about(name).summary}",
    )  # fmt: skip


def fewer(mode: str) -> str:
    """The preset with the fewest bits for weights; of those the first that works in this mode, where one does."""
    from qlab.preset import presets

    bits = {name: _bits(mapping) for name, mapping in presets.items()}
    least = [name for name, width in bits.items() if width == min(w for w in bits.values() if w)]
    return next((name for name in least if presets[name].default.mode == mode), least[0])  # type: ignore[union-attr]


def _bits(mapping: QConfigMapping) -> int:
    """Bits of the weights by default; 0: they stay float."""
    return mapping.default.weight.bits if mapping.default is not None and mapping.default.weight is not None else 0


# --- what lies in a byte ----------------------------------------------------------------------------------------------


def pieces(bits: BitMap, row: int) -> list[tuple[int, int, int, int]]:
    """The codes in one byte of the map: (code, its first bit here, how many of its bits, at which bit of the byte)."""
    code, out = bits.code[row], []
    for one in np.unique(code[code >= 0]):
        at = np.flatnonzero(code == one)
        out.append((int(one), int(bits.bit[row, at[0]]), len(at), int(at[0])))
    return out


def in_short(bits: BitMap, row: int, codes: Any, width: int) -> list[tuple[int, str]]:
    """The codes in one byte, and each with its value; an ellipsis where it goes on in the byte before or after."""
    out = []
    for code, first, count, _ in pieces(bits, row):
        before, after = "…" * (first > 0), "…" * (first + count < width)
        out.append((code, f"{before}{code:,}{after} = {_value(codes, code)}"))
    return out


def in_full(bits: BitMap, row: int, codes: Any, width: int) -> str:
    """The same in words: which bits of which code lie at which bits of the byte."""
    out = []
    for code, first, count, at in pieces(bits, row):
        ends = f"bit {at}" if count == 1 else f"bits {at} to {at + count - 1}"
        which = "" if count == width else f", {'lower' if first == 0 else 'upper'} {count} of its {width} bits"
        nibble = f", {'high' if at else 'low'} nibble" if width == NIBBLE else ""
        out.append(f"code {code:,} = {_value(codes, code)} ({ends}{nibble}{which})")
    return "; ".join(out)


def _value(codes: Any, code: int) -> str:
    return str(int(codes[code])).replace("-", MINUS)


def _legend(of: Known) -> str:
    signed = " Negative codes are in two's complement." if of.tensor.signed else ""
    across = " An ellipsis: the code goes on in the byte before or after." if 8 % of.tensor.bits else ""
    return (
        "The number behind the byte is its value in hexadecimal. Bits of one colour belong to one code; on the right "
        f"stands each code by its index in the weight, and its value.{signed}{across}"
    )


def _table(of: Known, bits: BitMap, values: np.ndarray, codes: Any) -> None:
    import pandas as pd

    from qlab.quant.cells import place_of

    channel, position = place_of(of.shape, of.axis, bits.code[:, 0])
    st.dataframe(
        pd.DataFrame(
            {
                "Byte": bits.byte,
                "Hex": [f"{value:02X}" for value in values],
                "Binary": [f"{value:08b}" for value in values],
                "Codes in it": [in_full(bits, row, codes, of.tensor.bits) for row in range(len(values))],
                "Channel": channel,
                "Position": position,
            }
        ),
        key="weights_bytes_table", hide_index=True, width="stretch",
        column_config={
            "Byte": st.column_config.NumberColumn(width=70, format="localized"),
            "Hex": st.column_config.TextColumn(width=50),
            "Binary": st.column_config.TextColumn(width=90, help="Highest bit first."),
            "Codes in it": st.column_config.TextColumn(width="large"),
            "Channel": st.column_config.NumberColumn(width=80, help="Of the first code in the byte."),
            "Position": st.column_config.NumberColumn(width=80, help="Of the first code in the byte, in its channel."),
        },
        alt="Each byte in hexadecimal and binary with the codes in it",
    )  # fmt: skip
