"""Typed access to the JSON of a quantized model file, of which any field may be anything."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from qlab.errors import BadUpload
from qlab.graph.archive_schema import shown

ADVICE = "Save the model again with QuantizedModel.save, or get the file again from where it came."
MAX_TEXT = 1_000

_T = TypeVar("_T")
_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}


def damaged(where: str, found: str) -> NoReturn:
    raise BadUpload(f"The quantized model file is damaged: {where} {found}. {ADVICE}")


def parse(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a text: keys once, integers of 64 bits, no NaN. Raises BadUpload."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_int64, parse_constant=_no_constant)
    except RecursionError:
        damaged(where, "is nested too deeply")
    except ValueError as error:
        raise BadUpload(
            f"The quantized model file is damaged: {where} is not JSON as the lab writes it. {ADVICE}",
            detail=str(error)[:300],
        ) from error
    return typed(value, dict, where)


def typed(value: object, kind: type[_T], where: str) -> _T:
    """The value, if it is of exactly this JSON type: true is no whole number. Raises BadUpload."""
    if type(value) is not kind:
        found = _KINDS.get(type(value), "empty" if value is None else type(value).__name__)
        damaged(where, f"should be {_KINDS[kind]} and is {found}")
    return value


def at(record: dict[str, Any], key: str, kind: type[_T], where: str) -> _T:
    """A required field. Raises BadUpload."""
    if key not in record:
        damaged(where, f"has no field {key!r}")
    return typed(record[key], kind, f"{where}.{key}")


def text_at(record: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """A short printable text, fit for a message. Raises BadUpload."""
    if default is not None and key not in record:
        return default
    return printable(at(record, key, str, where), f"{where}.{key}")


def printable(value: object, where: str) -> str:
    text = typed(value, str, where)
    if len(text) > MAX_TEXT or not text.isprintable():
        damaged(where, f"is a text of {len(text):,} characters that a name does not have: {shown(text)}")
    return text


def optional_int(record: dict[str, Any], key: str, where: str) -> int | None:
    return None if record.get(key) is None else at(record, key, int, where)


def sizes_at(record: dict[str, Any], key: str, where: str) -> list[int]:
    """A list of sizes, each from 0 up. Raises BadUpload."""
    sizes = [typed(v, int, f"{where}.{key}") for v in at(record, key, list, where)]
    if min(sizes, default=0) < 0:
        damaged(f"{where}.{key}", f"has a negative size: {min(sizes)}")
    return sizes


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a field is given twice")
    return record


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError("an integer of more than 64 bits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
