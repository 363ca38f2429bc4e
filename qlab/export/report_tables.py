"""The tables of a report: the figures of every run, and what was set in it. Each sorts by a click on its headings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qlab.export.report_page import plain, text
from qlab.export.report_rows import Row
from qlab.metrics import MISSING, metric, write


@dataclass(frozen=True)
class Column:
    """show: HTML of a cell; key: what it is sorted by, None where the cell is empty.

    shown: given the keys of all rows, whether the column stands there.
    """

    label: str
    show: Callable[[Row], str]
    key: Callable[[Row], Any]
    number: bool = False
    shown: Callable[[Sequence[Any]], bool] = lambda keys: True


def _any(keys: Sequence[Any]) -> bool:
    return any(key is not None for key in keys)


def _several(keys: Sequence[Any]) -> bool:
    return len(set(keys)) > 1


def figures(rows: Sequence[Row]) -> str:
    """What was measured, as HTML."""
    return _table("runs", _FIGURES, rows)


def settings(rows: Sequence[Row]) -> str:
    """What was set, how that differs from the baseline, and what came of it, as HTML."""
    return _table("settings", _SETTINGS, rows)


def when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def accuracy(share: float | None, low: float | None, high: float | None) -> str:
    """`91.5 % [89.3, 93.3]`, as HTML."""
    ends = "" if low is None or high is None else f" {metric('accuracy').interval(low, high)}"
    return plain(write("accuracy", share) + ends)


def _figure(label: str, name: str, value: Callable[[Row], Any], **more: Any) -> Column:
    return Column(label, lambda row: plain(write(name, value(row))), value, True, **more)


def _text(label: str, value: Callable[[Row], str | None], **more: Any) -> Column:
    return Column(label, lambda row: text(value(row)), lambda row: value(row) or None, **more)


def _delta(row: Row) -> str:
    return f'<span class="{row.held.tone}">{plain(metric("accuracy").delta(row.held.delta))}</span>'


def _short(row: Row) -> str:
    return f'<span class="{row.held.tone}">{plain(row.held.short)}</span>'


def _latency(row: Row) -> str:
    batch = row.line.latency_batch
    return plain(write("latency", row.line.latency) + (f" for {batch}" if batch else ""))


def _config(row: Row) -> str:
    line = row.line
    rules = f"\n{line.rules} rules of their own" if line.rules > 1 else "\n1 rule of its own" if line.rules else ""
    if line.weight_bits is None and line.activation_bits is None:
        return f"float{rules}"
    weights = _spec(line.weight_bits, line.weight_scheme, line.weight_observer)
    activations = _spec(line.activation_bits, line.activation_scheme, line.activation_observer)
    return f"{line.mode}\nweights {weights}\nactivations {activations}{rules}"


def _spec(bits: int | None, *words: str) -> str:
    return f"{bits} bit, {', '.join(words)}" if bits else "float"


_FIGURES = (
    Column("Accuracy, 95 %", lambda row: accuracy(row.line.accuracy, row.line.low, row.line.high),
           lambda row: row.line.accuracy, True),
    _text("Computed with", lambda row: row.computed),
    Column("Against baseline", _delta, lambda row: row.held.delta, True),
    Column("Verdict", _short, lambda row: row.held.short or None),
    _figure("Agreement", "agreement", lambda row: row.line.agreement),
    _figure("Size", "size", lambda row: row.line.size),
    Column("Latency, integer kernels", _latency, lambda row: row.line.latency, True, shown=_any),
    _figure("Samples", "samples", lambda row: row.line.samples, shown=_several),
    _text("Stopped early", lambda row: row.line.dropped, shown=_any),
)  # fmt: skip
_SETTINGS = (
    _text("Config", _config),
    _text("Against the baseline", lambda row: "" if row.is_baseline else row.differs),
    _text("What came of it", lambda row: row.held.words),
    _text("Notes", lambda row: "\n".join(filter(None, [", ".join(row.line.tags), row.line.notes])), shown=_any),
)  # fmt: skip


def _table(name: str, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    shown = [column for column in columns if column.shown([column.key(row) for row in rows])]
    heads = "".join(
        f'<th scope="col"{_class(c)}><button type="button">{plain(c.label)}</button></th>' for c in shown
    )  # fmt: skip
    body = "".join(
        f'<tr><th scope="row" data-key="{plain(row.title)}">{text(row.title)}</th>'
        f"{''.join(_cell(c, row) for c in shown)}</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table class="sortable" id="{name}"><thead><tr>'
        f'<th scope="col"><button type="button">Run</button></th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(column: Column, row: Row) -> str:
    key = column.key(row)
    if key is None:
        return f"<td{_class(column)}>{MISSING}</td>"
    return f'<td{_class(column)} data-key="{plain(key)}">{column.show(row)}</td>'


def _class(column: Column) -> str:
    return f' class="{"number" if column.number else "words"}"'
