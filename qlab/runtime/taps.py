"""SQNR of the integer execution: codes that came out of ONNX Runtime against the float network's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.conversion import QuantizedModel
from qlab.export.assemble import without_codes
from qlab.export.onnx_file import quantized_onnx
from qlab.export.values import Codes
from qlab.float_side import FloatBatch, power
from qlab.layer_sqnr import SqnrTaps
from qlab.quant.fake_quant import dequantize
from qlab.runtime.session import RuntimeOptions, Session, session_of

# Values at a time: few enough for the cache, so many that threads do not wait for each other between the steps.
_BLOCK = 1 << 18


class IntegerTaps(SqnrTaps):
    """Float in torch and integers in ONNX Runtime side by side. session: gives the codes of every static grid behind
    the network's own outputs."""

    def __init__(self, qmodel: QuantizedModel, session: Session, codes: Mapping[str, Codes]):
        super().__init__(qmodel)
        self._session = session
        self._codes = codes

    def _quantized(self, inputs: tuple[Tensor, ...], reference: FloatBatch) -> tuple[Any, dict[str, float]]:
        given = self._session(*inputs)
        own, codes = given[: -len(self._codes)], given[-len(self._codes) :]
        noise = {
            name: code_noise(stored.numpy(), c, reference.tensors[name])
            for (name, c), stored in zip(self._codes.items(), codes, strict=True)
            if name in self.layers_of
        }
        return own[0] if len(own) == 1 else own, noise


def integer_networks(qmodel: QuantizedModel, options: RuntimeOptions) -> tuple[Session, IntegerTaps | None]:
    """The network, and the same with taps where any of its layers has static codes; the graph is assembled once.

    Raises UnsupportedModel.
    """
    assembled, options = quantized_onnx(qmodel, codes_as_outputs=True), options.for_model(qmodel)
    with ThreadPoolExecutor(1) as other:
        plain = other.submit(session_of, without_codes(assembled), qmodel.model, True, options)
        if not assembled.codes:
            return plain.result(), None
        taps = IntegerTaps(qmodel, session_of(assembled.proto, qmodel.model, True, options), assembled.codes)
        return plain.result(), taps


def code_noise(codes: np.ndarray, c: Codes, reference: Tensor) -> float:
    """Sum of squared differences between the values of stored codes and the reference, both of one shape.

    As power(reference - dequantize(codes)), block by block: nothing of the size of the tensor is written, and no thread
    but the caller's is used.
    """
    qparams = c.qparams
    if qparams.scale.ndim:
        return power(reference - dequantize(torch.from_numpy(codes.astype(np.int32)) - c.shift, qparams))
    scale, zero = np.float32(qparams.scale.item()), np.float32(int(qparams.zero_point) + c.shift)
    stored, expected = codes.reshape(-1), reference.numpy().reshape(-1)
    block = min(_BLOCK, stored.size)
    values, wide = np.empty(block, np.float32), np.empty(block, np.float64)
    total = 0.0
    for start in range(0, stored.size, _BLOCK):
        part = stored[start : start + _BLOCK]
        x, d = values[: part.size], wide[: part.size]
        np.copyto(x, part)
        x -= zero
        x *= scale
        x -= expected[start : start + _BLOCK]
        np.copyto(d, x)
        d *= d  # not numpy.dot, which would take threads of its own
        total += float(np.add.reduce(d))
    return total
