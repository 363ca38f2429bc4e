"""What a configuration will give, before anything runs: exact bytes, the ledger, the noise each layer adds itself.

All of it comes from the one calibration, so a change of a setting is answered without running the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import streamlit as st

from qlab.config import QConfigMapping
from qlab.metrics import metric, write
from qlab.plots.layers import sqnr_bars
from qlab.ui import cache, choose, converted, errors, prepared, say, state, widgets

if TYPE_CHECKING:
    from qlab.calibration import Calibration
    from qlab.conversion import QuantizedModel, SizeReport
    from qlab.graph.capture import Model
    from qlab.graph.placement import LedgerRow
    from qlab.lab.run import Prepared
    from qlab.lab.store import Run

WORST = 10


@dataclass(frozen=True)
class Estimate:
    """size: exact. sqnr: dB, of each layer's own error: what its weight and its output lose on their grids."""

    size: SizeReport
    ledger: tuple[LedgerRow, ...]
    sqnr: dict[str, float]
    unmatched: tuple[str, ...]


def estimate(qmodel: QuantizedModel, calib: Calibration) -> Estimate:
    """What a config does to a model, from the calibration it was converted with alone."""
    return Estimate(qmodel.size, qmodel.ledger, _own_noise(qmodel, calib), qmodel.unmatched)


def _own_noise(qmodel: QuantizedModel, calib: Calibration) -> dict[str, float]:
    """Layer -> 10 log10(1 / sum of the noise shares of its weights and of its output).

    The noise a weight adds to the output has, for inputs that do not depend on its rounding, the same share of the
    signal as in the weight itself, and independent noise adds up. What earlier layers hand on is not in it.
    """
    from qlab.graph.lower import attribute
    from qlab.graph.placement import place
    from qlab.quant.error import quantization_error

    shares: dict[str, float] = {}
    for point in place(qmodel.model, qmodel.mapping, calib.infinite).weights:
        weight = attribute(qmodel.reference.graph_module, point.constant)
        if weight is not None and bool((weight != 0).any()):
            error = quantization_error(weight, qmodel.weights[point.layer].qparams)
            shares[point.layer] = shares.get(point.layer, 0.0) + error.noise / error.signal
    layer_of = {tensor: layer for layer, tensor in qmodel.outputs.items()}
    for tensor, module in qmodel.activations.items():
        # Statistics do not know the values of one channel from another's: such an output has no estimate.
        if tensor in calib and not module.scale.ndim:
            error = quantization_error(calib[tensor], module.qparams)
            layer = layer_of.get(tensor, tensor)
            if error.signal:
                shares[layer] = shares.get(layer, 0.0) + error.noise / error.signal
    return {layer: -10 * math.log10(share) if share else math.inf for layer, share in shares.items()}


@st.cache_resource(max_entries=128, show_spinner="Working out what this configuration gives")
def _cached(key: converted.Key, _qmodel: QuantizedModel, _calib: Calibration) -> Estimate:
    return estimate(_qmodel, _calib)


def of(model: Model, mapping: QConfigMapping, ready: Prepared) -> Estimate:
    """The estimate, worked out once for each model, calibration and config. Shared: do not change it. Raises what
    `convert` raises."""
    qmodel, key = converted.under(model, mapping, cache.store().artifact(ready.calibration_artifact))
    return _cached(key, qmodel, ready.calibration)


def expected_seconds(runs: Sequence[Run], model_hash: str, data_hash: str | None) -> tuple[float, int] | None:
    """Median time of earlier runs of this model on this data, and how many there were; None without any."""
    same = [run for run in runs if run.model_hash == model_hash and data_hash in (None, run.data_hash)]
    times = [run.seconds for run in same if run.seconds is not None]
    return (median(times), len(times)) if times else None


# --- drawing ----------------------------------------------------------------------------------------------------------


def panel(model: Model | None) -> None:
    """What the current config will give. Makes the calibration first where there is none, and shows how far that is."""
    say.markdown(
        "**What it will give**",
        help="Known before a run: bytes exactly, noise from the calibration. What it does to the accuracy takes a run.",
    )
    if model is None:
        say.caption("The network could not be read; the message above says why.")
        return
    if not choose.data_fits(model):
        return
    found = prepared.require(key="exp")
    if found is not None:
        draw(of(model, state.mapping(), found))


def draw(found: Estimate) -> None:
    size, quantized = found.size, [row for row in found.ledger if row.quantized]
    widgets.figures(
        [
            (
                "Size, exactly",
                write("size", size.quantized_bytes),
                f"of {write('size', size.float_bytes)} in float",
                f"Packed codes {write('size', size.codes)}, scales {write('size', size.scales)}, zero points "
                f"{write('size', size.zero_points)}, what stays float {write('size', size.float_rest)}.",
            ),
            (
                "Ops quantized",
                f"{len(quantized)} of {len(found.ledger)}",
                f"{len(found.ledger) - len(quantized)} stay float",
                "How many ops of the network compute on quantized values with this configuration.",
            ),
        ]
    )
    reasons = Counter((row.op, row.reason) for row in found.ledger if not row.quantized)
    if reasons:
        with st.expander(f"Why {sum(reasons.values())} ops stay float"):
            say.markdown(
                "\n".join(f"- {n} × `{op}`: {errors.escape(reason)}" for (op, reason), n in reasons.most_common())
            )
    if found.sqnr:
        say.markdown(
            "**Noise each layer adds itself**, worst first",
            help="Estimated from the calibration: what the weight and the output of a layer lose on their grids. The "
            "errors of earlier layers come on top; a run measures those too.",
        )
        figure = sqnr_bars(found.sqnr, widgets.dark(), most=WORST)
        # In a panel this narrow the figures behind the bars need more of the axis, and its title has no room for notes.
        figure.update_xaxes(title_text=metric("sqnr").axis, range=[0, 1.35 * max(figure.data[0].x)])
        widgets.chart(figure, key="exp_estimate_sqnr")
        if len(found.sqnr) > WORST:
            say.caption(f"{len(found.sqnr) - WORST} more tensors are better than these.")
