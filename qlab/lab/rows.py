"""Rows of the table of runs: which ones are asked for, and a row as a record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from qlab.lab.records import Headline, Run
from qlab.lab.tables import RUNS


def conditions(
    ids: Sequence[str] | None,
    status: str | Sequence[str] | None,
    kind: str | Sequence[str] | None,
    parent: str | None,
    content_key: str | None,
    search: str,
    tag: str | None,
    deleted: bool,
    owner: str | None,
    parts: bool,
) -> list[sa.ColumnElement[bool]]:
    """What a run has to meet, as `Store.list_runs` names it."""
    c = RUNS.c
    out: list[sa.ColumnElement[bool]] = [c.deleted.is_not(None) if deleted else c.deleted.is_(None)]
    if ids is not None:
        out.append(c.id.in_(ids))
    if status is not None:
        out.append(c.status.in_([status] if isinstance(status, str) else status))
    if kind is not None:
        out.append(c.kind.in_([kind] if isinstance(kind, str) else kind))
    if parent is not None:
        out.append(c.parent == parent)
    if content_key is not None:
        out.append(c.content_key == content_key)
    if owner is not None:
        out.append(c.owner == owner)
    if not parts:
        out.append(c.parent.is_(None))
    if tag is not None:
        out.append(c.tags.contains(json.dumps(tag, ensure_ascii=False), autoescape=True))
    for word in search.split():
        columns = (c.name, c.model, c.data, c.config, c.tags, c.notes)
        begins = c.id.startswith(word, autoescape=True)  # the middle of an id means nothing to anybody
        out.append(sa.or_(begins, *(column.icontains(word, autoescape=True) for column in columns)))
    return out


def run_of(row: Mapping[Any, Any]) -> Run:
    """A row as a record; result and detail where the query has them."""
    values = {str(k): v for k, v in row.items()}
    headline = Headline(**{k: values.pop(k) for k in Headline.__dataclass_fields__})
    values["spec_json"] = values.pop("spec")
    values["result_json"] = values.pop("result", None)
    values["tags"] = tuple(json.loads(values["tags"]))
    return Run(headline=headline, **values)
