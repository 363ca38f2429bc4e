"""Claims about what a runtime executes, and how fast: measured in ONNX Runtime on this machine."""

from __future__ import annotations

import math
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from qlab.lessons.myths.claim import TUTORIAL, WEB, Bar, Bars, Claim, Control, Outcome, Verdict
from qlab.lessons.samples import sample
from qlab.metrics import duration, percent
from qlab.preset import presets
from qlab.runtime.latency import Timing, time_calls

if TYPE_CHECKING:
    from onnx import ModelProto

    from qlab.conversion import QuantizedModel
    from qlab.runtime.executed import Executed

# ONNX and its runtime are imported where they are used: the page needs them for three claims of twelve.

NETWORK = "conv_digits"
BATCHES = (1, 64)
BUDGET = 0.8  # seconds for each timing
MODES = {"x86": "Static", "dynamic": "Dynamic", "int8_weight_only": "Weights only"}


@lru_cache(maxsize=8)
def _quantized(network: str, preset: str) -> QuantizedModel:
    from qlab.conversion import convert

    known = sample(network)
    return convert(known.model, presets[preset], known.calibration)


def _feed(network: str, batch: int) -> dict[str, NDArray[Any]]:
    known = sample(network)
    return {spec.name: x.numpy() for spec, x in zip(known.model.inputs, known.inputs(batch), strict=True)}


@lru_cache(maxsize=4)
def _ran(preset: str) -> Executed:
    from qlab.export.onnx_file import quantized_onnx
    from qlab.runtime.executed import executed

    return executed(quantized_onnx(_quantized(NETWORK, preset)).proto, _feed(NETWORK, 1))


@lru_cache(maxsize=4)
def _arithmetic(preset: str) -> Outcome:
    ran, layers = _ran(preset), [layer for layer in sample(NETWORK).model.layers if layer.macs]
    integer = {op.layer for op in ran.ops if op.kind == "integer"}
    macs = sum(layer.macs for layer in layers)
    share = sum(layer.macs for layer in layers if layer.name in integer) / macs
    kinds = {kind: sum(op.kind == kind for op in ran.ops) for kind in ("integer", "float", "convert", "move")}
    verdict: Verdict = "true" if share < 0.5 else "false"
    return Outcome(
        verdict,
        f"{percent(share)} of the {macs:,} multiplications were done by integer kernels, in {kinds['integer']} ops; "
        f"{kinds['float']} ops computed in float and {kinds['convert']} converted between both.",
        (
            ("Multiplied on integers", percent(share), f"of {macs:,}", "By the ops that ONNX Runtime really ran."),
            ("Integer ops", str(kinds["integer"]), percent(ran.share("integer")) + " of the time",
             "They compute on integers."),
            ("Float ops", str(kinds["float"]), percent(ran.share("float")) + " of the time", "They compute in float."),
            ("Conversions", str(kinds["convert"]), percent(ran.share("convert")) + " of the time", "Between the two."),
        ),
        Bars(
            tuple(
                Bar(layer.name, 100 * layer.macs / macs, f"{percent(layer.macs / macs)} "
                    f"{'on integers' if layer.name in integer else 'in float'}",
                    "gained" if layer.name in integer else "neutral")
                for layer in layers
            ),
            "share of all multiplications (%)",
        ),
        "The graph that ran says which it was, mode by mode. Static convolutions and linears multiply integers and add "
        "them in 32 bits; a factor leads to the next grid at the end. A dynamic config leaves convolutions in float, "
        "and weights alone in few bits are unpacked before they are multiplied.",
    )  # fmt: skip


def _dynamic_convolutions() -> ModelProto:
    """The network with its convolutions ranged at every call, by the tool that comes with the runtime."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from qlab.export.onnx_file import float_onnx

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(float_onnx(sample(NETWORK).model).proto, source)
        quantize_dynamic(source, target, weight_type=QuantType.QUInt8, op_types_to_quantize=["Conv"])
        return onnx.load(target)


@lru_cache(maxsize=1)
def _dynamic(_: str) -> Outcome:
    from qlab.runtime.executed import executed
    from qlab.runtime.session import AS_SIMULATED, float_session, integer_session, open_session

    known, proto = sample(NETWORK), _dynamic_convolutions()
    ran = executed(proto, _feed(NETWORK, 1))
    ranged = sum(op.op == "DynamicQuantizeLinear" for op in ran.ops)
    convolutions = sum(op.op == "ConvInteger" for op in ran.ops)
    windows = sum(
        math.prod(known.model.node(layer.name).meta["shape"][2:])
        for layer in known.model.layers if layer.op == "conv2d"
    )  # fmt: skip
    session, inputs = open_session(proto, AS_SIMULATED), known.inputs(1)
    feed, in_float = _feed(NETWORK, 1), float_session(known.model)
    static = integer_session(_quantized(NETWORK, "x86"))
    timing = time_calls(
        {"float": lambda: in_float(*inputs), "static": lambda: static(*inputs),
         "dynamic": lambda: session.run(None, feed)},
        1, torch.get_num_threads(), budget=BUDGET,
    )  # fmt: skip
    low, middle, _high = timing.ratio("dynamic", "float")
    every_window, slower = ranged >= windows, low > 1
    verdict: Verdict = "true" if every_window and slower else "depends" if every_window or slower else "false"
    because = (
        f"{convolutions} convolutions slide over {windows:,} windows of one image, and {ranged} ranges were taken: one "
        f"for each input of a convolution. It still takes {middle:.2f} times as long as float "
        f"{'and is slower' if slower else 'and is not clearly slower'} on this machine."
    )
    return Outcome(
        verdict, because,
        (
            ("Windows", f"{windows:,}", f"{convolutions} convolutions", "Positions of the kernels over one image."),
            ("Ranges taken", str(ranged), "one for each convolution" if ranged == convolutions else None,
             "DynamicQuantizeLinear ops that ran in one call."),
            *_figures(timing, {"float": "Float", "static": "Static", "dynamic": "Dynamic"}),
        ),
        _times(timing, {"float": "float", "static": "static, 8 bits", "dynamic": "dynamic, 8 bits"}, 1),
        "A tensor is ranged as a whole, once for each call, and not window by window. What it does cost: a pass over "
        "the input before anything can be multiplied, and every result goes back to float. "
        "This lab leaves convolutions in float under a dynamic config, and its ledger says so.",
    )  # fmt: skip


@lru_cache(maxsize=4)
def _faster(network: str) -> Outcome:
    from qlab.runtime.session import float_session, integer_session

    known = sample(network)
    in_float, on_integers = float_session(known.model), integer_session(_quantized(network, "x86"))
    found = {}
    for batch in BATCHES:
        x = known.inputs(batch)
        calls = {"float": lambda x=x: in_float(*x), "integer": lambda x=x: on_integers(*x)}
        found[batch] = time_calls(calls, batch, torch.get_num_threads(), budget=BUDGET)
    ratios = {batch: timing.ratio("float", "integer") for batch, timing in found.items()}
    faster = [batch for batch, (low, _, _) in ratios.items() if low > 1]
    verdict: Verdict = "true" if len(faster) == len(BATCHES) else "depends" if faster else "false"
    said = "; ".join(
        f"at batch {batch} the integer network is {middle:.2f} times as fast as float (quartiles {low:.2f} and "
        f"{high:.2f})"
        for batch, (low, middle, high) in ratios.items()
    )
    bars = tuple(
        Bar(f"batch {batch}", ratios[batch][1], f"{ratios[batch][1]:.2f} ×", "gained" if batch in faster else "neutral")
        for batch in BATCHES
    )
    return Outcome(
        verdict, f"{said[0].upper()}{said[1:]}.",
        tuple(
            figure for batch in BATCHES
            for figure in _figures(
                found[batch], {"float": f"Float, batch {batch}", "integer": f"Integer, batch {batch}"}
            )
        ),
        Bars(bars, "speed on integer kernels over float (×), in ONNX Runtime", (1.0, "as fast")),
        "Integers are faster where multiplying is most of the work and the CPU has instructions for it. In a small "
        "network, or at batch 1, starting ops and converting costs as much. Times differ from machine to machine, and "
        f"were taken with {torch.get_num_threads()} threads.",
    )  # fmt: skip


def _figures(timing: Timing, names: dict[str, str]) -> tuple[tuple[str, str, str | None, str], ...]:
    return tuple(
        (title, duration(timing.latency(name).median), None, f"Median of {timing.latency(name).runs} turns.")
        for name, title in names.items()
    )


def _times(timing: Timing, names: dict[str, str], batch: int) -> Bars:
    inks = {"float": "float", "static": "gained", "dynamic": "error"}
    return Bars(
        tuple(
            Bar(title, 1e6 * timing.latency(name).median, duration(timing.latency(name).median), inks[name])  # type: ignore[arg-type]
            for name, title in names.items()
        ),
        f"time of one call at batch {batch} (µs), in ONNX Runtime",
    )


CLAIMS = {
    "arithmetic": Claim(
        "int8 inference is mostly floating point",
        "The integers are turned back into floating point before the arithmetic, so it is predominantly float.",
        WEB, "The exported network runs in ONNX Runtime, and every op that ran is read from its profile.",
        _arithmetic, Control("Mode", MODES, "x86", "How activations are handled."),
        ("integers", "modes"), "Exporting and profiling the network …",
    ),
    "dynamic": Claim(
        "Dynamic quantization is bad for convolutions",
        "With dynamic quantization of a convolution you would quantize every sliding window at every inference.",
        TUTORIAL, "ONNX Runtime's own quantize_dynamic converts the convolutions; what runs is counted and timed.",
        _dynamic, None, ("modes",), "Exporting, converting and timing the network …",
    ),
    "faster": Claim(
        "A quantized network is always faster",
        "Fewer bits and fewer multiplications mean faster inference.", TUTORIAL,
        "Float and 8-bit network are timed turn by turn in ONNX Runtime, at two batch sizes.",
        _faster, Control("Network", {"conv_digits": "Convolutions", "outlier_mlp": "Linears"}, "conv_digits",
                         "Another network has another share of multiplications."),
        ("integers", "boundaries"), "Exporting and timing both networks …",
    ),
}  # fmt: skip
