"""qlab: an interactive laboratory for neural-network quantization.

The public API. Names are resolved on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "QuantSpec": "config", "QConfig": "config", "QConfigMapping": "config", "presets": "preset",
    "load_model": "graph.capture", "Model": "graph.capture",
    "load_dataset": "data", "Dataset": "data",
    "calibrate": "calibration", "merge_calibrations": "calibration", "Calibration": "calibration",
    "TensorStats": "quant.stats",
    "QParams": "quant.qparams", "choose_qparams": "quant.qparams", "observer_ranges": "quant.qparams",
    "quantize": "quant.fake_quant", "dequantize": "quant.fake_quant", "fake_quantize": "quant.fake_quant",
    "quantization_error": "quant.error", "sqnr": "quant.error",
    "QuantizedTensor": "quant.tensor",
    "convert": "conversion", "QuantizedModel": "conversion", "load_quantized": "export.quantized_load",
    "evaluate": "evaluation", "Evaluation": "evaluation", "compare": "evaluation",
    "train_qat": "training.trainer", "Training": "training.settings", "Edit": "edits", "apply_edits": "edits",
    "Experiment": "lab.experiment", "run": "lab.run",
    "sensitivity": "analysis.sensitivity", "Sensitivity": "analysis.sensitivity",
    "propagate": "analysis.propagation", "Propagation": "analysis.propagation",
    "diagnose": "analysis.diagnose", "Diagnosis": "analysis.diagnose", "Fault": "analysis.fault",
    "Remedy": "analysis.remedy", "try_remedies": "analysis.advice", "combined": "analysis.remedy",
    "equalized": "graph.equalize", "stability": "analysis.stability", "Stability": "analysis.stability",
    "sweep": "lab.sweep", "Sweep": "lab.sweep", "Grid": "lab.grid",
    **dict.fromkeys(
        ("QLabError", "UnsupportedModel", "BadUpload", "UnsafeFile", "DataMismatch", "NonFinite", "NotObserved",
         "InvalidConfig", "RunFailed", "Cancelled"), "errors",
    ),
}  # fmt: skip

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qlab' has no attribute {name!r}")
    value = getattr(import_module(f"qlab.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
