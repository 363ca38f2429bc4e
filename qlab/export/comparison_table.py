"""The runs of a comparison as files for other programs: CSV for spreadsheets, Parquet with types, specs to repeat."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from qlab.errors import InvalidConfig
from qlab.lab.experiment import Experiment

if TYPE_CHECKING:
    from qlab.lab.compared import Line
    from qlab.lab.store import Run

Kind = Literal["text", "words", "whole", "number", "time"]  # words: several texts

# A spreadsheet runs a cell that begins like this. It may also take ; tab and line ends inside a text for the end of a
# cell, whatever the quotes say, where its language has another separator than the comma.
# Source: OWASP, CSV Injection.
_FORMULA = re.compile(r"""(^|[;\t\r\n])(?=[\s"']*[=+\-@＝＋－＠])""")
TEXT_MARK = "'"  # what makes a spreadsheet take the rest for text


@dataclass(frozen=True)
class Column:
    """One column of the table; `help` says unit and meaning and goes into the Parquet schema."""

    name: str
    kind: Kind
    value: Callable[[Line], Any]
    help: str


COLUMNS = (
    Column("id", "text", lambda line: line.id, "number of the run in its lab"),
    Column("name", "text", lambda line: line.name, "as given by a person or a sweep; may be empty"),
    Column("network", "text", lambda line: line.model, "the network that was quantized"),
    Column("data", "text", lambda line: line.data, "what it was calibrated and evaluated on"),
    Column("config", "text", lambda line: line.config, "preset, or the settings in words"),
    Column("mode", "text", lambda line: line.mode, "static, dynamic or weight-only; float: only rules quantize"),
    Column("weight_bits", "whole", lambda line: line.weight_bits, "bits of a weight code; empty: float"),
    Column("activation_bits", "whole", lambda line: line.activation_bits, "bits of an activation code; empty: float"),
    Column("weight_scheme", "text", lambda line: line.weight_scheme, "how the grids of the weights are laid"),
    Column("activation_scheme", "text", lambda line: line.activation_scheme, "how the grids of the activations are"),
    Column("weight_observer", "text", lambda line: line.weight_observer, "rule that ranges the weights"),
    Column("activation_observer", "text", lambda line: line.activation_observer, "rule that ranges the activations"),
    Column("rules", "whole", lambda line: line.rules, "layers and types with settings of their own"),
    Column("backend", "text", lambda line: line.backend, "accuracy and agreement are simulated, or of integer kernels"),
    Column("accuracy", "number", lambda line: line.accuracy, "share of right predictions, 0 to 1"),
    Column("accuracy_low", "number", lambda line: line.low, "lower end of its 95 % interval (Wilson)"),
    Column("accuracy_high", "number", lambda line: line.high, "upper end of its 95 % interval (Wilson)"),
    Column("float_accuracy", "number", lambda line: line.float_accuracy, "of the float network, 0 to 1"),
    Column("accuracy_minus_float", "number", lambda line: line.delta_float, "accuracy less float_accuracy"),
    Column("agreement", "number", lambda line: line.agreement, "share of predictions equal to those of float, 0 to 1"),
    Column("size_bytes", "whole", lambda line: line.size, "all weights, with scales and what stays float"),
    Column("float_size_bytes", "whole", lambda line: line.float_size, "all weights of the float network"),
    Column("latency_seconds", "number", lambda line: line.latency, "median of a call on integer kernels, if timed"),
    Column("latency_batch", "whole", lambda line: line.latency_batch, "samples in a call that was timed"),
    Column("samples", "whole", lambda line: line.samples, "samples that were evaluated"),
    Column("stopped_early", "text", lambda line: line.dropped, "why not all samples were evaluated"),
    Column("status", "text", lambda line: line.status, "done, failed, cancelled, running or queued"),
    Column("created_utc", "time", lambda line: line.created, "when the run was asked for"),
    Column("tags", "words", lambda line: line.tags, "words given to the run"),
    Column("notes", "text", lambda line: line.notes, "what was written about the run"),
    Column("sweep", "text", lambda line: line.parent, "number of the sweep it belongs to"),
)


def comparison_csv(lines: Sequence[Line]) -> bytes:
    """A row for each line. Numbers stay numbers; text that a spreadsheet would run as a formula gets a ' in front.

    UTF-8 with a byte order mark, without which Excel reads another encoding. Several words stand in one cell, with "; "
    between; what is missing is empty.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_MINIMAL)
    writer.writerow([column.name for column in COLUMNS])
    for line in lines:
        writer.writerow([_cell(column.kind, column.value(line)) for column in COLUMNS])
    return out.getvalue().encode("utf-8-sig")


def comparison_parquet(lines: Sequence[Line]) -> bytes:
    """The same table with types, the same ones whatever is missing; each column's meaning is in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "text": pa.string(), "words": pa.list_(pa.string()), "whole": pa.int64(), "number": pa.float64(),
        "time": pa.timestamp("ms", "UTC"),
    }  # fmt: skip
    schema = pa.schema([pa.field(c.name, types[c.kind], metadata={"description": c.help}) for c in COLUMNS])
    columns = [[_typed(c.kind, c.value(line)) for line in lines] for c in COLUMNS]
    table = pa.table([pa.array(v, f.type) for v, f in zip(columns, schema, strict=True)], schema=schema)
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def comparison_specs(runs: Sequence[Run]) -> bytes:
    """What every run was asked for, under the name it has now: a JSON list, each of which Experiment.from_dict reads.

    Raises InvalidConfig for a run that is no experiment.
    """
    return json.dumps([spec_of(run) for run in runs], indent=2, ensure_ascii=False).encode()


def spec_of(run: Run) -> dict[str, Any]:
    """The experiment of a run as JSON. Raises InvalidConfig for a run of another kind."""
    if run.kind != "experiment":
        raise InvalidConfig(f"Run {run.id} is a job of kind {run.kind}: choose experiments, which alone have a config.")
    return Experiment.from_dict({**run.spec, "name": run.name}).to_dict()


def _typed(kind: Kind, value: Any) -> Any:
    if value is None:
        return None
    return datetime.fromtimestamp(value, UTC) if kind == "time" else list(value) if kind == "words" else value


def _cell(kind: Kind, value: Any) -> Any:
    if value is None:
        return ""
    if kind == "time":
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S}"
    if kind in ("whole", "number"):
        return value
    return as_text("; ".join(value) if kind == "words" else value)


def as_text(value: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return _FORMULA.sub(rf"\1{TEXT_MARK}", value)
