"""What a module that PyTorch converted holds, and which ways of changing one of its integers really change it.

Everything in the result was measured just then: each way is a function below that is called on a freshly converted
module, and the code that is told is the source of that very function.
"""

from __future__ import annotations

import inspect
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig, UnsupportedModel

SAMPLES, EXTRA = 8, 4  # inputs that are run; how much wider than its kernel the input of a convolution is
LAYER = "layer"


@dataclass(frozen=True)
class Stored:
    """An entry of a state dict. kind: type of the value in words, "Tensor qint8 [5, 16]". holds: "integers" where
    integers of the weight are in it, "float weight", "grid" (of the output) or "other"."""

    key: str
    kind: str
    holds: str


@dataclass(frozen=True)
class Attempt:
    """One way of changing a number. code: what was run. error: what it raised, None where it went through.

    written: numbers that differ afterwards in the tensor that was written to; None where there is none.
    held: integers of the module's weight that differ afterwards, asked from the module anew. stored: whether its state
    dict differs. output: largest difference of the output on the same inputs, in its own unit.
    """

    name: str
    code: str
    written: int | None
    held: int
    stored: bool
    output: float
    error: str | None

    @property
    def works(self) -> bool:
        """Whether the module computes with the number now."""
        return self.error is None and self.held > 0 and self.stored


@dataclass(frozen=True)
class Unconverted:
    """A layer that was handed to prepare and convert by itself. before, after: its type. keys: of its state dict.

    float_weight: whether `weight` in it is the float one, equal to that before, bit for bit. output: largest difference
    of the output when that weight is written to.
    """

    code: str
    before: str
    after: str
    keys: tuple[str, ...]
    float_weight: bool
    output: float


@dataclass(frozen=True)
class TorchConverted:
    """layer: "Linear" | "Conv2d"; shape: of its weight. module: its type after convert; engine: of the integer kernels.

    weight_is: type of `.weight` there. integers_code: how they are read; low, high: of the integers, first: the one at
    0, 0, …. same_as_qlab: how many of `count` are those that qlab chooses by minimum and maximum per channel.
    output: largest absolute output. attempts: in PyTorch; in_qlab: the same with qlab; alone: a layer by itself.
    """

    version: str
    engine: str
    layer: str
    shape: tuple[int, ...]
    module: str
    weight_is: str
    code: str
    stored: tuple[Stored, ...]
    integers_code: str
    low: int
    high: int
    first: int
    count: int
    same_as_qlab: int
    output: float
    attempts: tuple[Attempt, ...]
    in_qlab: Attempt
    alone: Unconverted

    def attempt(self, name: str) -> Attempt:
        """The attempt of this name."""
        return next(one for one in self.attempts if one.name == name)


def torch_converted(weight: Tensor) -> TorchConverted:
    """Quantize a layer with this float weight in PyTorch and in qlab, and try to change its first integer.

    weight: [O, K] of a Linear or [O, I, H, W] of a Conv2d; the SAMPLES inputs are drawn anew with a fixed seed. The
    first call imports torch.ao, which takes seconds. Raises UnsupportedModel where this torch cannot quantize,
    InvalidConfig for another shape.
    """
    bench = Bench(weight)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # layers draw a weight before they get theirs
        warnings.simplefilter("ignore")  # that torch.ao.quantization goes away one day is told on the page
        try:
            return bench.facts()
        except (RuntimeError, NotImplementedError) as error:
            raise UnsupportedModel(
                f"torch {torch.__version__} could not quantize this layer with the engine {bench.engine!r}.",
                detail=str(error),
            ) from error


def _torch_ao() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torch.ao.quantization as tq
        except ImportError as error:
            raise UnsupportedModel(
                f"torch {torch.__version__} has no torch.ao.quantization ({error}), so there is nothing to try here: "
                "torch 2.13 has it.",
                detail=repr(error),
            ) from error
    return tq


class _Quantizable(nn.Module):
    """A layer between the stubs that torch needs to know where integers begin and end."""

    def __init__(self, tq: Any, layer: nn.Module):
        super().__init__()
        self.quant, self.layer, self.dequant = tq.QuantStub(), layer, tq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.layer(self.quant(x)))


class _Plain(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


# --- what is run, and shown as it was run -----------------------------------------------------------------------------


def _convert(tq: Any, net: nn.Module, x: Tensor) -> Any:
    net.eval().qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    prepared = tq.prepare(net)
    prepared(x)
    converted = tq.convert(prepared)
    return net, prepared, converted


def _integers(converted: Any) -> Tensor:
    return converted.layer.weight().int_repr()


def _float_weight(net: Any, prepared: Any, converted: Any) -> Tensor:
    with torch.no_grad():
        net.layer.weight.fill_(1.0)
        prepared.layer.weight.fill_(1.0)
    return prepared.layer.weight


def _weight_attribute(net: Any, prepared: Any, converted: Any) -> Tensor:
    converted.layer.weight.data.fill_(2.0)
    return converted.layer.weight


def _unpacked(net: Any, prepared: Any, converted: Any) -> Tensor:
    weight = converted.layer.weight()
    weight[0] = 0.0
    return weight


def _int_repr(net: Any, prepared: Any, converted: Any) -> Tensor:
    integers = converted.layer.weight().int_repr()
    integers[0] = 0
    return integers


def _state_dict(net: Any, prepared: Any, converted: Any) -> Tensor:
    state = converted.layer.state_dict()
    weight = state["weight"] if "weight" in state else state["_packed_params._packed_params"][0]
    weight[0] = 0.0
    return weight


def _load_state_dict(net: Any, prepared: Any, converted: Any) -> Tensor:
    state = converted.layer.state_dict()
    weight = state["weight"] if "weight" in state else state["_packed_params._packed_params"][0]
    weight[0] = 0.0
    converted.layer.load_state_dict(state)
    return weight


def _set_weight_bias(net: Any, prepared: Any, converted: Any) -> Tensor:
    old = converted.layer.weight()
    integers = old.int_repr()
    first = (0,) * integers.ndim
    integers[first] = 127 if integers[first] < 0 else -128
    weight = torch._make_per_channel_quantized_tensor(
        integers, old.q_per_channel_scales(), old.q_per_channel_zero_points(), old.q_per_channel_axis()
    )
    converted.layer.set_weight_bias(weight, converted.layer.bias())
    return integers


def _set_weight_bias_per_tensor(net: Any, prepared: Any, converted: Any) -> Tensor:
    old = converted.layer.weight()
    integers = old.int_repr()
    first = (0,) * integers.ndim
    integers[first] = 127 if integers[first] < 0 else -128
    weight = torch._make_per_tensor_quantized_tensor(integers, old.q_scale(), old.q_zero_point())
    converted.layer.set_weight_bias(weight, converted.layer.bias())
    return integers


def _write_code(qmodel: Any) -> Tensor:
    codes = qmodel.weights["layer"].codes
    first = (0,) * codes.ndim
    codes[first] = 127 if codes[first] < 0 else -128
    return codes


def _by_itself(tq: Any, layer: nn.Module, x: Tensor) -> Any:
    layer.eval().qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    tq.prepare(layer, inplace=True)
    layer(x)
    tq.convert(layer, inplace=True)
    return layer


_WAYS: dict[str, Callable[[Any, Any, Any], Tensor]] = {
    "float weight": _float_weight,
    "weight attribute": _weight_attribute,
    "unpacked": _unpacked,
    "int_repr": _int_repr,
    "state_dict": _state_dict,
    "load_state_dict": _load_state_dict,
    "set_weight_bias": _set_weight_bias,
}


def code_of(function: Callable[..., Any]) -> str:
    """The body of a function as it stands in this file, without what it gives back."""
    source = textwrap.dedent(inspect.getsource(function))
    body = textwrap.dedent(source[source.index(":\n") + 2 :]).rstrip()
    lines = body.splitlines()
    if lines[-1].startswith("return ") and len(lines) > 1:
        lines.pop()
    return "\n".join(line.removeprefix("return ") for line in lines)


# --- the measurements -------------------------------------------------------------------------------------------------


class Bench:
    """Layers that PyTorch converts, to try things on. weight: float32, what each fresh layer starts from; x: inputs."""

    def __init__(self, weight: Tensor):
        """weight: [O, K] of a Linear or [O, I, H, W] of a Conv2d. Raises UnsupportedModel, InvalidConfig."""
        if weight.ndim not in (2, 4) or not weight.numel():
            raise InvalidConfig(
                f"a weight of shape {list(weight.shape)} is neither of a Linear nor of a Conv2d: give one."
            )
        self.tq, self.weight = _torch_ao(), weight.detach().float()
        self.engine = str(torch.backends.quantized.engine)
        drawn = torch.Generator().manual_seed(0)
        size = weight.shape[1:] if weight.ndim == 2 else (weight.shape[1], *(s + EXTRA for s in weight.shape[2:]))
        self.x = torch.randn(SAMPLES, *size, generator=drawn)
        self.bias = torch.randn(len(weight), generator=drawn) * 0.1

    def layer(self) -> nn.Linear | nn.Conv2d:
        """One more float layer with this weight."""
        made: nn.Linear | nn.Conv2d
        if self.weight.ndim == 2:
            made = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        else:
            height, width = self.weight.shape[2:]
            made = nn.Conv2d(self.weight.shape[1], self.weight.shape[0], (height, width))
        with torch.no_grad():
            made.weight.copy_(self.weight)
            assert made.bias is not None
            made.bias.copy_(self.bias)
        return made

    def fresh(self) -> SimpleNamespace:
        """net, prepared and converted, all of them new."""
        net, prepared, converted = _convert(self.tq, _Quantizable(self.tq, self.layer()), self.x)
        return SimpleNamespace(net=net, prepared=prepared, converted=converted)

    def facts(self) -> TorchConverted:
        converted = self.fresh().converted
        integers, output = _integers(converted), converted(self.x)
        in_qlab, same = self._qlab(integers)
        return TorchConverted(
            version=str(torch.__version__),
            engine=self.engine,
            layer="Linear" if self.weight.ndim == 2 else "Conv2d",
            shape=tuple(self.weight.shape),
            module=_name(converted.layer),
            weight_is=type(converted.layer.weight).__name__,
            code=code_of(_convert),
            stored=tuple(self._stored(key, value) for key, value in converted.state_dict().items()),
            integers_code=code_of(_integers),
            low=int(integers.min()),
            high=int(integers.max()),
            first=int(integers.flatten()[0]),
            count=integers.numel(),
            same_as_qlab=same,
            output=float(output.abs().max()),
            attempts=tuple(self._attempt(name) for name in _WAYS),
            in_qlab=in_qlab,
            alone=self._alone(),
        )

    def _stored(self, key: str, value: Any) -> Stored:
        parts = value if isinstance(value, tuple) else (value,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        kind = ", ".join(_kind(part) for part in parts)
        if any(t.shape == self.weight.shape and t.is_quantized for t in tensors):
            holds = "integers"
        elif any(t.shape == self.weight.shape and t.is_floating_point() for t in tensors):
            holds = "float weight"
        else:
            holds = "grid" if key.endswith((".scale", ".zero_point")) else "other"
        return Stored(key, f"tuple ({kind})" if isinstance(value, tuple) else kind, holds)

    @staticmethod
    def way(name: str, converted: Any) -> Callable[[Any, Any, Any], Tensor]:
        """The attempt of this name as a function of net, prepared and converted; it gives what was written to."""
        per_tensor = converted.layer.weight().qscheme() == torch.per_tensor_affine
        return _set_weight_bias_per_tensor if name == "set_weight_bias" and per_tensor else _WAYS[name]

    def _attempt(self, name: str) -> Attempt:
        made = self.fresh()
        way = self.way(name, made.converted)
        pristine = self.fresh()
        integers, output, state = _integers(made.converted), made.converted(self.x), _flat(made.converted)
        written, error = None, None
        try:
            target = way(made.net, made.prepared, made.converted)
        except (AttributeError, TypeError, RuntimeError) as refused:
            error = f"{type(refused).__name__}: {refused}"
        else:
            before = pristine.prepared.layer.weight if way is _float_weight else integers
            written = int((whole(target) != whole(before)).sum())
        return Attempt(
            name, code_of(way), written,
            held=int((_integers(made.converted) != integers).sum()),
            stored=not _equal(state, _flat(made.converted)),
            output=float((made.converted(self.x) - output).abs().max()),
            error=error,
        )  # fmt: skip

    def _qlab(self, integers: Tensor) -> tuple[Attempt, int]:
        """The same number written in qlab, and how many integers torch and qlab chose alike."""
        import qlab

        model = qlab.load_model(_Plain(self.layer()), (self.x,))
        config = QConfig(QuantSpec(8, "per_channel_symmetric"), QuantSpec(8))
        calib = qlab.calibrate(model, qlab.load_dataset(self.x.numpy()))
        qmodel = qlab.convert(model, QConfigMapping(default=config), calib)
        codes, output = qmodel.weights[LAYER].codes.clone(), qmodel(self.x)
        state = {key: tensor.clone() for key, tensor in qmodel.state_dict().items()}
        target = _write_code(qmodel)
        after = qmodel.state_dict()
        return Attempt(
            "qlab", code_of(_write_code),
            written=int((target != codes).sum()),
            held=int((qmodel.weights[LAYER].codes != codes).sum()),
            stored=any(not torch.equal(after[key], state[key]) for key in state),
            output=float((qmodel(self.x) - output).abs().max()),
            error=None,
        ), int((codes == integers).sum())  # fmt: skip

    def _alone(self) -> Unconverted:
        layer = self.layer()
        before, weight = _name(layer), layer.weight.detach().clone()
        layer = _by_itself(self.tq, layer, self.x)
        after, state = _name(layer), layer.state_dict()
        held = state.get("weight")
        same = isinstance(held, Tensor) and not held.is_quantized and torch.equal(held, weight)
        output, difference = layer(self.x).detach(), 0.0
        if same:
            layer.weight.data.fill_(2.0)
            difference = float((layer(self.x).detach() - output).abs().max())
        return Unconverted(code_of(_by_itself), before, after, tuple(state), same, difference)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{type(value).__name__} {str(value).removeprefix('torch.')}"


def whole(tensor: Tensor) -> Tensor:
    """The integers of a quantized tensor; another tensor as it is."""
    return tensor.int_repr() if tensor.is_quantized else tensor.detach()


def _flat(module: nn.Module) -> list[Tensor]:
    """Every tensor of a state dict, those in tuples too, as it stands now."""
    found = []
    for value in module.state_dict().values():
        parts = value if isinstance(value, tuple) else (value,)
        found += [whole(part).clone() for part in parts if isinstance(part, Tensor)]
    return found


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
