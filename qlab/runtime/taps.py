"""SQNR of the integer execution: codes that came out of ONNX Runtime against the float network's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.conversion import QuantizedModel
from qlab.export.onnx_file import quantized_onnx
from qlab.quant.fake_quant import dequantize
from qlab.runtime.session import AS_SIMULATED, RuntimeOptions, open_session
from qlab.sqnr import SqnrTaps


class IntegerTaps(SqnrTaps):
    """Float in torch and integers in ONNX Runtime side by side, with the codes of every static grid as outputs."""

    def __init__(self, qmodel: QuantizedModel, options: RuntimeOptions = AS_SIMULATED):
        super().__init__(qmodel)
        assembled = quantized_onnx(qmodel, codes_as_outputs=True)
        self.codes = {name: c for name, c in assembled.codes.items() if name in self.layers_of}
        self.runtime = open_session(assembled.proto, options.for_model(qmodel))
        self.own = [v.name for v in assembled.proto.graph.output][: -len(assembled.codes) or None]

    def run(self, number: int, inputs: tuple[Tensor, ...]) -> tuple[Any, Any]:
        reference, kept = self.run_float(inputs)
        feed = {s.name: x.numpy() for s, x in zip(self.qmodel.inputs, inputs, strict=True)}
        names = [*self.own, *(c.name for c in self.codes.values())]
        given = dict(zip(names, self.runtime.run(names, feed), strict=True))
        for tensor, c in self.codes.items():
            codes = torch.from_numpy(given[c.name].astype(np.int32)) - c.shift
            self.add(number, tensor, kept[tensor], dequantize(codes, c.qparams))
        outputs = [torch.from_numpy(given[name]) for name in self.own]
        return (outputs[0] if len(outputs) == 1 else tuple(outputs)), reference
