"""Five ways in which a linear layer stays float, each placed anew with its ledger line and with what helps.

And a sixth that is none: a weight with an outlier is quantized like any other, and badly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qlab.analysis.ledger import remedies_of, why_none
from qlab.analysis.torch_converted import TorchConverted, code_of, torch_converted
from qlab.analysis.unmatched import closest, unmatched_remedies
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.graph.capture import load_model
from qlab.graph.placement import LedgerRow, place
from qlab.lessons.samples import sample
from qlab.preset import presets

if TYPE_CHECKING:
    from qlab.graph.capture import Model

PERCEPTRON, CONVOLUTIONS = "outlier_mlp", "conv_digits"
RULES = {"fc*": "by_name", "fc1": "by_name", "linear": "by_type"}  # pattern -> which rules; each says: keep it float
PATTERNS = ("net.fc2", "fc2", "*2", "FC2")
GROUPS = (16, 24, 32, 48, 64)
INPUTS, OUTPUTS, RANK = 16, 8, 2  # of the layer with an adapter


@dataclass(frozen=True)
class Remedied:
    """A change of the config, and the ledger line of the layer under it."""

    title: str
    sentence: str
    row: LedgerRow


@dataclass(frozen=True)
class Line:
    """What a config makes of one layer of a network.

    code: what was set, as a person would write it. rows: of all ops; row: of the layer. unmatched: rules of the config
    that name nothing, each with the names that are like it. remedies: none where no config helps, which nothing_helps
    then says.
    """

    code: str
    rows: tuple[LedgerRow, ...]
    row: LedgerRow
    unmatched: Mapping[str, tuple[str, ...]]
    remedies: tuple[Remedied, ...]
    nothing_helps: str


def line(case: str, setting: str) -> Line:
    """The ledger line of a case: rule (setting: of RULES), name (of PATTERNS), group (of GROUPS), computed
    ("every call" | "merged")."""
    return {"rule": _rule, "name": _name, "group": _group, "computed": _computed}[case](setting)


@lru_cache(maxsize=8)
def _rule(pattern: str) -> Line:
    by = RULES[pattern]
    rules = {pattern: None}
    mapping = QConfigMapping(default=presets["x86"].default)
    mapping = mapping.replace(by_type=rules) if by == "by_type" else mapping.replace(by_name=rules)
    code = f'int8 = presets["x86"].default\nQConfigMapping(default=int8, {by}={{"{pattern}": None}})  # None: float'
    return _line(sample(PERCEPTRON).model, mapping, "fc2", code)


@lru_cache(maxsize=8)
def _name(pattern: str) -> Line:
    mapping = QConfigMapping(default=None, by_name={pattern: presets["x86"].default})
    code = f'int8 = presets["x86"].default\nQConfigMapping(default=None, by_name={{"{pattern}": int8}})'
    return _line(sample(PERCEPTRON).model, mapping, "fc2", code)


@lru_cache(maxsize=8)
def _group(size: str) -> Line:
    spec = QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=int(size))
    mapping = QConfigMapping(default=QConfig(weight=spec, mode="weight_only"))
    code = (
        f'int4 = QuantSpec(bits=4, qscheme="per_group_symmetric", group_size={size})\n'
        'QConfigMapping(default=QConfig(weight=int4, mode="weight_only"))'
    )
    return _line(sample(CONVOLUTIONS).model, mapping, "classifier", code)


def row_length(layer: str) -> int:
    """How many weights one output of this layer of the convolutional network has."""
    weight = sample(CONVOLUTIONS).weights[f"{layer}.weight"]
    return weight[0].numel()


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter that is added to its weight at every call."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        self.weight, self.up, self.down = (
            nn.Parameter(torch.randn(*shape, generator=drawn))
            for shape in ((OUTPUTS, INPUTS), (OUTPUTS, RANK), (RANK, INPUTS))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.up @ self.down)


class Merged(Adapted):
    """The same with the adapter added once, before the network is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.merged = nn.Parameter((self.weight + self.up @ self.down).detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.merged)


class _Holding(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.fc = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(x)
        return found


@lru_cache(maxsize=2)
def _computed(when: str) -> Line:
    layer = {"every call": Adapted, "merged": Merged}[when]
    model = load_model(_Holding(layer()), (torch.zeros(2, INPUTS),))
    linear = [one.name for one in model.layers if one.op == "linear"][-1]  # the adapter's own product is one as well
    config = 'QConfigMapping(default=presets["x86"].default)'
    return _line(model, presets["x86"], linear, f"# forward\n{code_of(layer.forward)}\n# config\n{config}")


def _line(model: Model, mapping: QConfigMapping, layer: str, code: str) -> Line:
    placed = place(model, mapping)
    row = _row(placed.ledger, layer)
    ways = [way for rule in placed.unmatched for way in unmatched_remedies(rule, mapping, model)]
    ways += remedies_of(row, mapping, model)
    remedies = tuple(
        Remedied(way.title, way.sentence, _row(place(model, way.mapping).ledger, layer))
        for way in ([] if row.quantized else ways)
    )
    alike = {rule: tuple(closest(rule.partition(" ")[2], model)) for rule in placed.unmatched}
    nothing = "" if remedies or row.quantized else why_none(row, model)
    return Line(code, tuple(placed.ledger), row, alike, remedies, nothing)


def _row(ledger: Sequence[LedgerRow], layer: str) -> LedgerRow:
    return next(row for row in ledger if row.layer == layer)


@lru_cache(maxsize=1)
def bare() -> TorchConverted:
    """A linear layer handed to torch's prepare and convert by itself, and inside a module. The first call imports
    torch.ao, which takes seconds. Raises UnsupportedModel where this torch cannot quantize."""
    return torch_converted(sample(PERCEPTRON).weights["fc3.weight"])


@lru_cache(maxsize=1)
def bare_here() -> LedgerRow:
    """The ledger line of a linear layer that is the whole network, in the lab."""
    model = load_model(nn.Linear(INPUTS, OUTPUTS), (torch.zeros(2, INPUTS),))
    (row,) = place(model, presets["x86"]).ledger
    return row


@dataclass(frozen=True, eq=False)
class Stretched:
    """One layer of the perceptron quantized alone, its weight only, so that all error is that of its weight.

    largest, typical: of its float weights, in magnitude; typical is the median. codes [levels]: the codes there are;
    counts [levels]: weights on each. sqnr: of the layer's
    output in dB. versus: against the float network, paired, simulated.
    """

    row: LedgerRow
    largest: float
    typical: float
    codes: NDArray[np.int64]
    counts: NDArray[np.int64]
    sqnr: float
    evaluation: Evaluation
    versus: Comparison

    @property
    def zeros(self) -> float:
        """Share of the weights that have become exactly 0."""
        return float(self.counts[self.codes == 0].sum() / self.counts.sum())


@lru_cache(maxsize=64)
def stretched(layer: str, bits: int, qscheme: str) -> Stretched:
    """A layer of the perceptron ("fc1", "fc2", "fc3") with its weight alone on a symmetric grid."""
    of = sample(PERCEPTRON)
    config = QConfig(weight=QuantSpec(bits=bits, qscheme=qscheme), mode="weight_only")
    qmodel = convert(of.model, QConfigMapping(by_name={layer: config}))
    found = evaluate(qmodel, of.data, of.float_evaluation)
    weight, held = of.weights[f"{layer}.weight"].abs(), qmodel.weights[layer]
    codes = np.arange(held.quant_min, held.quant_max + 1)
    counts = np.bincount(held.codes.flatten().long().numpy() - held.quant_min, minlength=len(codes))
    return Stretched(
        _row(qmodel.ledger, layer), float(weight.max()), float(weight.median()), codes, counts, found.sqnr[layer],
        found, compare(of.float_evaluation, found, of.data.evaluation.targets),
    )  # fmt: skip
