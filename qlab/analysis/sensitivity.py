"""Which layer costs how much: one layer quantized and all others float, or one float and all others quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qlab.analysis.measured import Measured, Paired
from qlab.analysis.variants import Bench, Variant
from qlab.calibration import Calibration, Progress
from qlab.config import QConfig, QConfigMapping
from qlab.conversion import QuantizedModel
from qlab.data import Dataset
from qlab.errors import InvalidConfig
from qlab.graph.capture import Model

Mode = Literal["only", "all_but"]
Part = Literal["both", "weight", "activation"]
MODES: tuple[Mode, ...] = ("only", "all_but")
PARTS: tuple[Part, ...] = ("both", "weight", "activation")
PROXY_SAMPLES = 128  # the fewest to rank on
STEADY = 0.95  # rank correlation from which an order is taken to be that of all samples
RESAMPLES = 200
SENSITIVITY = "sensitivity"


@dataclass(frozen=True)
class SensitivityRow:
    """What quantizing one layer costs, or sparing it brings. part: what of the layer. weights: how many it has.
    against_base: the same, prediction by prediction."""

    layer: str
    op: str
    part: Part
    weights: int
    measured: Measured
    against_base: Paired

    @property
    def accuracy(self) -> float | None:
        return self.measured.accuracy

    @property
    def loss(self) -> float:
        return self.measured.loss

    @property
    def sqnr(self) -> float:
        return self.measured.sqnr

    @property
    def n(self) -> int:
        return self.measured.n

    def to_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer, "op": self.op, "part": self.part, "weights": self.weights,
            "measured": self.measured.to_dict(), "against_base": self.against_base.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> SensitivityRow:
        given = {"measured": Measured.from_dict(d["measured"]), "against_base": Paired.from_dict(d["against_base"])}
        return cls(**{**d, **given})


@dataclass(frozen=True)
class Sensitivity(Sequence[SensitivityRow]):
    """rows: in the order of the network. base: float for "only", all quantized for "all_but"; float: the network as it
    was; both on `base.n` samples. A row that was not confirmed has seen fewer, the first ones."""

    mode: Mode
    rows: tuple[SensitivityRow, ...]
    base: Measured
    float: Measured

    def __getitem__(self, i: Any) -> Any:
        return self.rows[i]

    def __len__(self) -> int:
        return len(self.rows)

    def ranked(self, part: Part = "both") -> list[SensitivityRow]:
        """Guiltiest first; see `ranked` of this module."""
        return ranked([row for row in self.rows if row.part == part], self.mode)

    def row(self, layer: str, part: Part = "both") -> SensitivityRow | None:
        return next((row for row in self.rows if (row.layer, row.part) == (layer, part)), None)

    def confirmed(self, row: SensitivityRow) -> bool:
        """Whether it was measured on all samples."""
        return row.n == self.base.n

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode, "rows": [row.to_dict() for row in self.rows], "base": self.base.to_dict(),
            "float": self.float.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Sensitivity:
        rows = tuple(SensitivityRow.from_dict(row) for row in d["rows"])
        return cls(d["mode"], rows, Measured.from_dict(d["base"]), Measured.from_dict(d["float"]))


def sensitivity(
    model: Model, data: Dataset, mapping: QConfigMapping, calib: Calibration | None = None, mode: Mode = "only", *,
    parts: Sequence[Part] = ("both",), batch_size: int = 64, confirm: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:  # fmt: skip
    """Quantize each layer alone ("only"), or leave each alone float ("all_but"), and measure on the evaluation data.

    parts: the whole layer, its weight, its activations. confirm: rank all layers on the first samples and measure only
    so many of the worst on all; None measures every layer on all. The first samples are 128 (as many whole batches as
    hold them), and twice as many as long as drawing them anew changes the order (rank correlation below 0.95).
    Simulated, with the numbers that `evaluate(convert(...))` gives: what a variant computes like the base is taken from
    there.
    Source of the method: HAWQ-style per-layer analysis as in AIMET QuantAnalyzer, Siddegowda et al. 2022.
    Raises InvalidConfig (nothing is quantized, unknown mode), DataMismatch, and what `convert` raises.
    """
    if mode not in MODES or any(part not in PARTS for part in parts):
        raise InvalidConfig(f"mode is one of {', '.join(MODES)} and a part one of {', '.join(PARTS)}.")
    bench = Bench(
        model, data, mapping, calib, "float" if mode == "only" else "quantized", batch_size,
        None if progress is None else (SENSITIVITY, progress),
    )  # fmt: skip
    whole, count = bench.whole, len(bench.data)
    ops = {row.layer: row.op for row in whole.ledger if row.quantized and row.mode is not None}
    if not ops:
        raise InvalidConfig("this config quantizes no layer, so none can be sensitive: choose a preset.")
    wanted = {(layer, part): _alone(whole, layer, part, mode) for layer in ops for part in parts}
    made = {key: bench.variant(alone) for key, alone in wanted.items() if alone is not None}
    variants = list(made.values())
    first = bench.samples(PROXY_SAMPLES)
    if confirm is None or first == count or confirm >= len(ops):
        first, confirm = count, 0
    while True:
        more = confirm * len(parts) * -(-(count - first) // bench.size)  # to come, as far as is known yet
        bench.total = bench.done + bench.steps(variants, first) + more
        bench.measure(variants, first)
        if first == count or all(_steady([made[key] for key in made if key[1] == part]) for part in parts):
            break
        first = bench.samples(2 * first)

    def rows() -> list[SensitivityRow]:
        return [
            SensitivityRow(layer, ops[layer], part, _weights(whole, layer), v.measured, v.paired)
            for (layer, part), v in made.items()
        ]

    if confirm:
        worst = list(dict.fromkeys(row.layer for row in ranked(rows(), mode)))[:confirm]
        chosen = [v for (layer, _), v in made.items() if layer in worst]
        bench.total = bench.done + bench.steps(chosen, count)
        bench.measure(chosen, count)
    bench.finish()
    return Sensitivity(mode, tuple(rows()), bench.of_base.measured(), bench.of_float.measured())


def ranked(rows: Sequence[SensitivityRow], mode: Mode) -> list[SensitivityRow]:
    """Guiltiest first, by the output's SQNR: lowest where the layer alone is quantized, highest where it is spared.
    Those seen on all samples come before those that were not confirmed."""
    sign = 1 if mode == "only" else -1
    return sorted(rows, key=lambda row: (-row.n, sign * row.sqnr))


def _steady(variants: Sequence[Variant]) -> bool:
    """Whether their order by the output's error hardly depends on which samples they have seen: it is compared with the
    orders that bootstrap draws of the same samples give."""
    scores = {id(v.score): v.score for v in variants}.values()
    if len(scores) < 2:
        return True
    errors = np.stack([np.concatenate(score.errors) for score in scores])
    layers, n = errors.shape
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    ranks = np.argsort(np.argsort(errors @ drawn.T, axis=0), axis=0)
    rank = np.argsort(np.argsort(errors.sum(1)))
    apart = np.square(ranks - rank[:, None]).sum(0)
    return float(np.mean(1 - 6 * apart / (layers * (layers**2 - 1)))) >= STEADY


def _alone(whole: QuantizedModel, layer: str, part: Part, mode: Mode) -> QConfigMapping | None:
    """The config in which this part of this layer is the exception; None where there is no such thing: a dynamic layer
    has no activations by themselves, and its weight cannot be spared without them."""
    op = next(row.op for row in whole.ledger if row.layer == layer)
    config = whole.mapping.resolve(layer, op).qconfig
    assert config is not None
    if part == "weight" and not _weights(whole, layer):
        return None
    if mode == "only":
        alone = _only(config, part)
        return None if alone is None else whole.mapping.replace(default=None, by_type={}, by_name={layer: alone})
    if (part == "activation" and config.activation is None) or (part == "weight" and config.mode == "dynamic"):
        return None
    return whole.mapping.replace(by_name={**whole.mapping.by_name, layer: _without(config, part)})


def _only(config: QConfig, part: Part) -> QConfig | None:
    """The config with this part alone quantized."""
    if part == "both":
        return config
    if part == "weight":
        return None if config.weight is None else QConfig(config.weight, mode="weight_only")
    return QConfig(activation=config.activation) if config.mode == "static" else None


def _without(config: QConfig, part: Part) -> QConfig | None:
    """The config with this part float."""
    return None if part == "both" else _only(config, "activation" if part == "weight" else "weight")


def _weights(whole: QuantizedModel, layer: str) -> int:
    """Of a recurrent layer each weight has a name of its own below the layer's; so have layers below this one."""
    layers = {row.layer for row in whole.ledger} - {layer}
    own = (t for name, t in whole.weights.items() if layer in (name, name.rpartition(".")[0]) and name not in layers)
    return sum(tensor.codes.numel() for tensor in own)
