"""Tensors that need a static range and of which calibration saw nothing that gives one."""

from __future__ import annotations

from dataclasses import dataclass

from qlab.analysis.remedy import Remedy
from qlab.calibration import Calibration
from qlab.config import QConfigMapping
from qlab.graph.capture import Model
from qlab.graph.placement import Placement, place


@dataclass(frozen=True)
class Unseen:
    """tensor: its name. layers: the ops that need it on a grid. zeros: it was observed, and every value was zero."""

    tensor: str
    layers: tuple[str, ...]
    zeros: bool


def unseen(model: Model, placement: Placement, calib: Calibration) -> list[Unseen]:
    """What the placement needs a range for and calibration never observed, or saw as nothing but zeros."""
    layer_of = {tensor: layer for layer, tensor in placement.outputs.items()}
    out = []
    for point in placement.activations:
        if point.kind != "observed":
            continue
        never = point.tensor not in calib or not calib[point.tensor].count
        zeros = not never and calib[point.tensor].minimum == calib[point.tensor].maximum == 0
        if never or zeros:
            readers = [model.names[node] for node in point.consumers or ()]
            out.append(Unseen(point.tensor, tuple(readers) or (layer_of.get(point.tensor, point.tensor),), zeros))
    return out


def unseen_remedy(found: Unseen, mapping: QConfigMapping, model: Model, calib: Calibration) -> Remedy:
    """Keeps float whatever needs this tensor on a grid: what gives it, and what then would read it quantized."""
    kept: dict[str, None] = {}
    while True:
        new = mapping.replace(by_name={**mapping.by_name, **kept})
        needing = [one for one in unseen(model, place(model, new, calib.infinite), calib) if one.tensor == found.tensor]
        if not needing:
            break
        kept |= {layer: None for one in needing for layer in one.layers}
    names = ", ".join(kept)
    return Remedy(
        f"Keep {found.tensor} float",
        f"No range is needed then; {names} compute{'s' if len(kept) == 1 else ''} in float. Calibrating with data that "
        "reaches this tensor would keep it on integers.",
        new,
    )
