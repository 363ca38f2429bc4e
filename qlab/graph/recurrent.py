"""LSTM and GRU written out step by step, with input and state ranged at every call, as dynamic kernels do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qlab.config import QuantSpec
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import dynamic_qparams

Cell = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


class DynamicFakeQuantize(nn.Module):
    """Fake quantization with the range of the very tensor that comes in. Same shape out."""

    def __init__(self, spec: QuantSpec):
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, dynamic_qparams(x, self.spec))


class DynamicRecurrent(nn.Module):
    """aten.lstm or aten.gru with input and state fake-quantized at every step; called with the arguments of the op.

    x [T, N, K], or [N, T, K] with batch_first; states [layers * directions, N, H].
    Returns (output, h, c) for an LSTM and (output, h) for a GRU, as the op does.
    """

    def __init__(self, kind: str, spec: QuantSpec):
        super().__init__()
        self.cell = {"lstm": _lstm_cell, "gru": _gru_cell}[kind]
        self.fake_quantize = DynamicFakeQuantize(spec)

    def forward(
        self, x: Tensor, hx: Tensor | Sequence[Tensor], params: Sequence[Tensor], has_biases: bool, num_layers: int,
        dropout: float, train: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        initial = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        out, finals = _run(
            self.cell, x, initial, params, has_biases, num_layers, bidirectional, batch_first, self.fake_quantize
        )
        return out, *finals


def _lstm_cell(from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (from_input + from_state).chunk(4, -1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gru_cell(from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (ri, zi, ni), (rh, zh, nh) = from_input.chunk(3, -1), from_state.chunk(3, -1)
    reset, update = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
    new = torch.tanh(ni + reset * nh)
    return ((1 - update) * new + update * state[0],)


def _run(
    cell: Cell, x: Tensor, initial: tuple[Tensor, ...], params: Sequence[Tensor], has_biases: bool, num_layers: int,
    bidirectional: bool, batch_first: bool, quantized: Callable[[Tensor], Tensor],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    layer_input = x.transpose(0, 1) if batch_first else x
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    finals: list[list[Tensor]] = [[] for _ in initial]
    for layer in range(num_layers):
        quantized_input = quantized(layer_input)
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            group = params[k * each : (k + 1) * each]
            b_ih, b_hh = (group[2], group[3]) if has_biases else (None, None)
            from_input = linear(quantized_input, group[0], b_ih)
            state = tuple(s[k] for s in initial)
            steps = range(len(from_input)) if direction == 0 else range(len(from_input) - 1, -1, -1)
            seen: list[Tensor] = [state[0]] * len(from_input)
            for t in steps:
                state = cell(from_input[t], linear(quantized(state[0]), group[1], b_hh), state)
                seen[t] = state[0]
            outputs.append(torch.stack(seen))
            for final, value in zip(finals, state, strict=True):
                final.append(value)
        layer_input = torch.cat(outputs, -1) if directions == 2 else outputs[0]
    out = layer_input.transpose(0, 1) if batch_first else layer_input
    return out, [torch.stack(f) for f in finals]
