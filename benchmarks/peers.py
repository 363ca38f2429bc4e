"""The same work done by torch.ao's observers (through torchao's PT2E flow) and by ONNX Runtime's quantizer."""

from __future__ import annotations

import copy
import io
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


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qlab-bench-")
