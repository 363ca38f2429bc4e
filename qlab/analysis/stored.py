"""What an analysis found, as JSON and back: dataclasses, arrays as lists, infinities by name."""

from __future__ import annotations

import math
from typing import Any, TypeVar, get_args, get_origin

import numpy as np
from cattrs import Converter

from qlab.analysis.sensitivity import Sensitivity
from qlab.config import QConfigMapping
from qlab.evaluation import Comparison, Evaluation

T = TypeVar("T")


def to_json(found: Any) -> Any:
    """A dataclass of this package as what JSON knows."""
    return _CONVERTER.unstructure(found)


def from_json(kind: type[T], document: Any) -> T:
    """The inverse of to_json, for what the lab itself has written."""
    return _CONVERTER.structure(document, kind)


def _converter() -> Converter:
    made = Converter()
    for kind in (QConfigMapping, Evaluation, Comparison, Sensitivity):
        made.register_unstructure_hook(kind, lambda value: value.to_dict())
        made.register_structure_hook(kind, lambda document, as_kind: as_kind.from_dict(document))
    made.register_unstructure_hook(float, lambda value: value if math.isfinite(value) else str(value))
    made.register_structure_hook(float, lambda document, _kind: float(document))
    made.register_unstructure_hook_func(_is_array, lambda value: value.tolist())
    made.register_structure_hook_func(_is_array, lambda document, kind: np.array(document, _dtype(kind)))
    return made


def _is_array(kind: Any) -> bool:
    return kind is np.ndarray or get_origin(kind) is np.ndarray


def _dtype(kind: Any) -> Any:
    """Of NDArray[np.int64], which is ndarray[Any, dtype[int64]]."""
    return get_args(get_args(kind)[1])[0] if get_args(kind) else None


_CONVERTER = _converter()
