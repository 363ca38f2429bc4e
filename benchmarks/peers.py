"""The same work done by torch.ao's observers (through torchao's PT2E flow) and by ONNX Runtime's quantizer."""

from __future__ import annotations

import copy
import io
import operator
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.case import Case


def exported(case: Case) -> Any:
    """The plain torch module of the case, as torch itself loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(io.BytesIO(case.archive.read_bytes())).module()


def prepared_pt2e(case: Case, histogram: bool) -> Any:
    """The model with torchao's observers in place: histogram (the x86 default) or min-max for activations."""
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantizer.quantizer import QuantizationSpec

    quantizer = x86.X86InductorQuantizer()
    config = x86.get_default_x86_inductor_quantization_config()
    if not histogram:
        spec = QuantizationSpec(
            dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=MinMaxObserver,
        )  # fmt: skip
        config = type(config)(spec, spec, config.weight, config.bias, config.is_qat)
    quantizer.set_global(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prepare_pt2e(exported(case), quantizer)


def converted_pt2e(prepared: Any) -> Any:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert_pt2e(copy.deepcopy(prepared))


def torch_int8(case: Case, engine: str = "x86") -> torch.fx.GraphModule:
    """The model as torch.ao's int8 module for x86 (FX graph mode, its default config, integer kernels)."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = engine
    batches = case.batches(case.calibration)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(as_modules(case), get_default_qconfig_mapping(engine), batches[0])
        for inputs in batches:
            prepared(*inputs)
        return convert_fx(prepared)


def as_modules(case: Case) -> torch.fx.GraphModule:
    """The graph with modules and functions in place of ATen ops, which is all that torch.ao's patterns know."""
    gm = copy.deepcopy(case.model.graph_module)
    functions = {
        "aten.relu.default": torch.nn.functional.relu,
        "aten.add.Tensor": operator.add,
        "aten.adaptive_avg_pool2d.default": torch.nn.functional.adaptive_avg_pool2d,
        "aten.flatten.using_ints": torch.flatten,
        "aten.pad.default": torch.nn.functional.pad,
    }
    for node in list(gm.graph.nodes):
        op = str(node.target)
        if op in functions:
            node.target = functions[op]
        if op == "aten.slice.Tensor":
            x, dim, start, end, *step = node.args
            node.target, node.args = operator.getitem, (x, (*[slice(None)] * dim, slice(start, end, *step)))
        if op not in ("aten.conv2d.default", "aten.linear.default"):
            continue
        x, weight, bias, *rest = node.args
        w, b = (gm.get_parameter(str(p.target)) for p in (weight, bias))
        module: torch.nn.Module
        if rest or w.ndim == 4:
            stride, padding, dilation, groups = (*rest, *[1, 0, 1, 1][len(rest) :])
            module = torch.nn.Conv2d(
                w.shape[1] * groups, w.shape[0], tuple(w.shape[2:]), tuple(stride), tuple(padding), dilation, groups
            )
        else:
            module = torch.nn.Linear(w.shape[1], w.shape[0])
        module.weight, module.bias = torch.nn.Parameter(w.detach()), torch.nn.Parameter(b.detach())
        gm.add_submodule(f"unit_{node.name}", module)
        with gm.graph.inserting_before(node):
            made = gm.graph.call_module(f"unit_{node.name}", (x,))
        node.replace_all_uses_with(made)
        gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm.eval()


class Reader:
    """Batches for ONNX Runtime's calibration."""

    def __init__(self, name: str, batches: list[tuple[torch.Tensor, ...]]):
        self.items = iter([{name: x.numpy()} for (x,) in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.items, None)

    def __iter__(self) -> Any:
        return self.items


def onnx_model(case: Case, folder: Path) -> Path:
    path = folder / "float.onnx"
    example = case.batches(case.calibration)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            exported(case), example, dynamo=True, opset_version=21, verbose=False,
            dynamic_shapes=tuple({0: torch.export.Dim("batch", min=1, max=4096)} for _ in example),
        )  # fmt: skip
    assert program is not None
    program.save(path)
    return path


def quantize_onnx(source: Path, target: Path, batches: list[tuple[torch.Tensor, ...]], method: str) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    name = onnx.load(source).graph.input[0].name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(
            source, target, Reader(name, batches), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )  # fmt: skip


def onnx_call(session: Any, x: torch.Tensor) -> Any:
    """A call without arguments for a network of one input; tensors in and out, as ours has them."""
    (name,) = (i.name for i in session.get_inputs())
    return lambda: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qlab-bench-")
