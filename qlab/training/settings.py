"""How a network is trained with fake quantization: frozen, checked, JSON. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qlab.errors import InvalidConfig

RANGES = ("moving_average", "lsq")
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Training:
    """Quantization-aware training on the calibration samples.

    epochs: passes over the samples. lr: learning rate at the start; with "adam" it is relative: the share of what is
    usual in its channel that a weight moves by in a step. batch_size: samples a step. optimizer: "adam", or "sgd" with
    momentum 0.9, as published. schedule: "cosine" ends at zero, "constant" stays.
    ranges: "moving_average" follows the minimum and maximum of each batch, "lsq" learns the step size of each grid by
    its gradient (Esser et al. 2020). averaging_constant: weight of each new batch in a moving average. freeze_after:
    share of the steps after which ranges stay and only weights go on.
    distillation: share of the loss that asks for the float network's output instead of the label; 1 where the data has
    no labels. mixing: share of each step's samples that are replaced by mixtures of two, for which the float network's
    output is asked (mixup of Zhang et al. 2018, with the network as the label); token numbers cannot be mixed and stay.
    hints: weight of the part of the loss that asks for the float network's inner tensors as well; 0 leaves it out.
    validation: share of the samples that are held out, to choose the best epoch by; without, the last epoch is the
    result. patience: epochs without a better one after which training ends; None goes on to the last. seed: of the
    order of the samples, of the mixtures and of what is held out. Raises InvalidConfig.
    """

    epochs: int = 20
    lr: float = 0.004
    batch_size: int = 32
    optimizer: str = "adam"
    schedule: str = "cosine"
    ranges: str = "moving_average"
    averaging_constant: float = 0.01
    freeze_after: float = 0.7
    distillation: float = 0.5
    mixing: float = 0.75
    hints: float = 1.0
    validation: float = 0.0
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            _whole(name, getattr(self, name), least)
        if self.patience is not None:
            _whole("patience", self.patience, 1)
        for name, low, high in (
            ("lr", 0.0, 10.0), ("averaging_constant", 0.0, 1.0), ("freeze_after", 0.0, 1.0),
            ("distillation", 0.0, 1.0), ("mixing", 0.0, 1.0), ("hints", 0.0, 100.0), ("validation", 0.0, 0.5),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InvalidConfig(f"{name} is {value!r}: use a number from {low:g} to {high:g}.")
            object.__setattr__(self, name, float(value))
        if self.lr == 0:
            raise InvalidConfig("lr is 0: nothing would be learned. Use a number above 0, 0.001 for example.")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("ranges", RANGES)):
            if getattr(self, name) not in known:
                raise InvalidConfig(f"{name} is {getattr(self, name)!r}: use one of {', '.join(known)}.")

    def replace(self, **changes: Any) -> Training:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Training:
        """Raises InvalidConfig."""
        if not isinstance(d, Mapping):
            raise InvalidConfig(f"training is a table of names and values; found {type(d).__name__}.")
        known = [f.name for f in fields(cls)]
        if unknown := set(d) - set(known):
            raise InvalidConfig(f"training has no field {', '.join(sorted(unknown))}: it has {', '.join(known)}.")
        return cls(**d)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidConfig(f"{name} is {value!r}: use a whole number from {least} up.")
