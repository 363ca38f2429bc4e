"""What is wrong where float and quantized network run side by side: shifted means, saturation, grids too coarse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qlab.analysis.fault import Fault, threshold
from qlab.analysis.propagation import Propagation
from qlab.metrics import percent, three_digits, write


def error_faults(found: Propagation) -> Iterator[Fault]:
    """What is found in the errors each unit makes by itself."""
    for row in found.rows:
        shift = row.own.largest_shift
        if shift >= threshold("bias_shift"):
            channels: tuple[int, ...] = ()
            where = ""
            if row.own.channel_shift is not None:
                order = np.argsort(-np.abs(row.own.channel_shift))
                channels = tuple(int(i) for i in order if abs(row.own.channel_shift[i]) >= threshold("bias_shift"))
                where = f" of channel {channels[0]}"
            more = ""
            if len(channels) > 1:
                more = f", and that of {len(channels) - 1} more channels by at least {threshold('bias_shift'):g}"
            sentence = (
                f"Rounding in {row.layer} moves the mean{where} of its output by {three_digits(shift)} standard "
                f"deviations{more}. An error of one sign does not average out."
            )
            yield Fault("bias_shift", "warning", row.tensor, row.layer, shift, sentence, channels=channels)
        if row.clipped is not None and row.clipped >= threshold("saturated"):
            sentence = (
                f"{percent(row.clipped)} of the values of {row.tensor} in the evaluation data lie beyond its grid: its "
                f"SQNR is {write('sqnr', row.own.sqnr)} there."
            )
            yield Fault("saturated", "warning", row.tensor, row.layer, row.clipped, sentence)
        if row.own.sqnr < threshold("coarse_grid"):
            sentence = (
                f"{row.layer} by itself, with exact inputs, gives its output an SQNR of {write('sqnr', row.own.sqnr)}; "
                f"with the errors of all layers before it, {write('sqnr', row.arrived.sqnr)}."
            )
            yield Fault("coarse_grid", "warning", row.tensor, row.layer, row.own.sqnr, sentence)
