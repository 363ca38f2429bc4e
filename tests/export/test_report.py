"""The report on a comparison: what it says of real runs, and that no text in it is more than text."""

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

import qlab
from qlab.errors import InvalidConfig
from qlab.export.report import comparison_report
from qlab.export.report_page import as_data
from qlab.export.report_rows import rows_of
from qlab.lab.compared import layers_by_run, line_of, paired
from qlab.lab.experiment import Experiment
from qlab.lab.run import read_result, run
from qlab.lab.store import FAILED, Store
from qlab.metrics import write

ATTACK = "</script><img src=x onerror=alert(1)>"
MADE = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC


class Parsed(HTMLParser):
    """A page as a browser takes it apart: elements, the text of scripts by id, cells of tables, and all text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words = ""
        self._raw: dict | None = None
        self._rows: list[list[str]] | None = None
        self._cell = False
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._raw = dict(attrs) if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        elif tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("id", ""), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("th", "td")
        self._raw = None

    def handle_data(self, data):
        if self._raw is not None:
            if self.scripts:
                attrs, text = self.scripts[-1]
                self.scripts[-1] = (attrs, text + data)
            return
        self.words += data
        if self._cell:
            self._rows[-1][-1] += data

    def script(self, name):
        (found,) = [text for attrs, text in self.scripts if attrs.get("id") == name]
        return found

    @property
    def own(self):
        (found,) = [text for attrs, text in self.scripts if not attrs]
        return found

    @property
    def charts(self):
        return json.loads(self.script("chart-data"))

    def table(self, name):
        """Run -> heading -> cell."""
        head, *rows = self.tables[name]
        return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("report") / "home")


@pytest.fixture(scope="module")
def few():
    return qlab.load_dataset("conv_digits").subset(range(300)).split(100)


@pytest.fixture(scope="module")
def runs(store, few):
    """Three on integer kernels, the second of which is worse beyond chance, and one simulated."""
    grid = {"good": "x86", "bad": _two_bits(), ATTACK: qlab.presets["x86"].replace(by_name={"conv2": None})}
    swept = qlab.sweep("conv_digits", few, grid, store=store, backend="integer")
    simulated = run(Experiment("conv_digits", few, "int4_weight_only", name="simulated one"), store=store)
    return [*swept, store.list_runs(ids=[simulated.id])[0]]


def _two_bits():
    default = qlab.presets["x86"].default
    return qlab.presets["x86"].replace(default=default.replace(weight=default.weight.replace(bits=2)))


@pytest.fixture(scope="module")
def page(store, runs):
    return Parsed(comparison_report(store, runs, runs[0], made=MADE))


def test_the_table_says_what_the_runs_hold(page, store, runs) -> None:
    table = page.table("runs")
    assert list(table) == ["good", "bad", ATTACK, "simulated one"]
    for one in runs:
        row, line = table[one.name], line_of(one)
        assert row["Accuracy, 95 %"].startswith(write("accuracy", line.accuracy) + " [")
        assert row["Size"] == write("size", line.size)
        assert row["Agreement"] == write("agreement", line.agreement)
    assert [row["Computed with"] for row in table.values()] == [*["integer kernels"] * 3, "simulated"]
    assert "Latency, integer kernels" not in table["good"]  # nothing was timed
    assert "Samples" not in table["good"]  # the same for all, so it stands above
    assert f"Runs of conv_digits on {runs[0].data}, 200 samples." in page.words
    assert f"Made 2026-09-21 14:13 UTC with qlab {qlab.__version__}." in page.words


def test_every_run_is_held_against_the_baseline_sample_by_sample(page, store, runs) -> None:
    table, settings = page.table("runs"), page.table("settings")
    pair = paired(store, runs[1], runs[0])
    assert pair.comparison.significant
    assert table["bad"]["Verdict"] == "worse"
    assert settings["bad"]["What came of it"] == pair.verdict("good")
    points = 100 * (pair.comparison.gained - pair.comparison.lost) / 200
    assert table["bad"]["Against baseline"] == f"{points:+.1f} pt".replace("-", "−")
    assert table["good"]["Verdict"] == "baseline"
    assert settings["good"]["Against the baseline"] == "–"
    assert settings["bad"]["Against the baseline"] == "weight bits 8 → 2"
    assert settings[ATTACK]["Against the baseline"] == "layer conv2 – → float"


def test_without_a_baseline_it_is_float(store, runs) -> None:
    page = Parsed(comparison_report(store, runs[:2]))
    settings = page.table("settings")
    own = read_result(store, runs[1]).comparison
    assert settings["bad"]["What came of it"].startswith("worse than the float network, beyond chance on 200 samples")
    assert page.table("runs")["bad"]["Against baseline"] == write("accuracy", own.lost / 200 - own.gained / 200).join(
        ("−", "")
    ).replace(" %", " pt")
    assert settings["good"]["Against the baseline"] == "all float → W8 A8 static"


def test_the_head_names_the_best_and_the_smallest_that_will_do(page, runs) -> None:
    lines = {one.name: line_of(one) for one in runs}
    best = max(lines.values(), key=lambda line: (line.accuracy, -line.size))
    assert f"Most accurate: {best.name}, {write('accuracy', best.accuracy)} [" in page.words
    verdicts = {name: row["Verdict"] for name, row in page.table("runs").items()}
    least = min((lines[name] for name, verdict in verdicts.items() if verdict != "worse"), key=lambda line: line.size)
    assert f"not worse than good beyond chance: {least.name}, {write('size', least.size)}." in page.words


def test_the_charts_are_drawn_from_the_same_figures(page, store, runs) -> None:
    charts = page.charts
    assert list(charts) == ["over-size", "accuracy", "layers-0"]
    for chart in charts.values():
        assert chart["light"]["layout"]["template"] != chart["dark"]["layout"]["template"]
    points = {}
    for trace in charts["over-size"]["light"]["data"]:
        for number, i in enumerate(trace.get("customdata", ())):
            symbol = trace["marker"]["symbol"]
            points[i] = (trace["y"][number], symbol if isinstance(symbol, str) else symbol[number])
    assert points.pop("float")[0] == pytest.approx(100 * read_result(store, runs[0]).reference.accuracy)
    assert points == {
        one.id: (pytest.approx(100 * line_of(one).accuracy), "diamond" if one is runs[3] else "circle") for one in runs
    }
    dots = charts["accuracy"]["light"]
    reference = read_result(store, runs[0]).reference.accuracy
    expected = [reference, *(line_of(one).accuracy for one in runs)]
    assert [trace["x"][0] for trace in dots["data"]] == pytest.approx([100 * share for share in expected])
    assert [trace["marker"]["symbol"] for trace in dots["data"]] == ["circle"] * 4 + ["diamond"]
    assert len({trace["marker"]["color"] for trace in dots["data"]}) == 3  # float, integer kernels, simulated
    assert [name.rsplit(" · ", 1)[-1] for name in dots["layout"]["yaxis"]["ticktext"]] == [
        "float", *["integer kernels"] * 3, "simulated",
    ]  # fmt: skip


def test_the_heatmap_holds_every_layer_of_every_run(page, store, runs) -> None:
    layers, matrix = layers_by_run([read_result(store, one) for one in runs])
    heat = page.charts["layers-0"]["light"]
    z = heat["data"][0]["z"]
    if isinstance(z, dict):  # plotly writes arrays of numbers as bytes
        z = np.frombuffer(base64.b64decode(z["bdata"]), z["dtype"]).reshape(matrix.shape)
    drawn = np.array(z, dtype=float)
    known = np.isfinite(matrix)
    assert known.any()
    np.testing.assert_allclose(drawn[known], matrix[known])
    assert list(heat["layout"]["yaxis"]["ticktext"]) == layers
    assert heat["layout"]["xaxis"]["ticktext"][0] == "good · integer"
    assert heat["layout"]["xaxis"]["ticktext"][3] == "simulated …· simulated"


def test_specs_and_versions_are_there(page, store, runs) -> None:
    specs = re.findall(r"\{\n.*?\n\}", page.words, re.DOTALL)
    assert [Experiment.from_dict(json.loads(spec)).spec_hash for spec in specs] == [one.spec_hash for one in runs]
    assert page.tables[""][0][0] == "all runs"
    for name, value in read_result(store, runs[0]).versions.items():
        assert f"{name} {value}" in page.tables[""][0][1]
    assert f"qlab {qlab.__version__}, plotly" in page.tables[""][1][1]


# ---- it loads nothing, and text is text ------------------------------------------------------------------------------


def test_nothing_in_it_asks_for_another_file(page) -> None:
    loading = {"src", "href", "srcset", "action", "data", "poster", "background"}
    assert not [(tag, attrs) for tag, attrs in page.elements if loading & set(attrs)]
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "img", "iframe", "object", "embed", "base", "form"})
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]


def test_only_its_own_scripts_may_run(page) -> None:
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    library = gzip.decompress(base64.b64decode(page.script("plotly"))).decode()
    assert library == get_plotlyjs()
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in (page.own, library)]
    assert rules["script-src"] == [f"'sha256-{digest}'" for digest in digests]
    assert not [source for name, sources in rules.items() for source in sources if name != "img-src" and ":" in source]
    assert rules["img-src"] == ["data:", "blob:"]


@pytest.mark.parametrize("where", ["name", "model", "data", "config", "notes", "tags", "error"])
def test_free_text_stays_text_wherever_it_stands(store, runs, where) -> None:
    text = f"{ATTACK}<!--<script>$title &amp; \" ' %{{x}}"
    changed = replace(runs[1], **{where: (text,) if where == "tags" else text})
    if where == "error":
        changed = replace(changed, status=FAILED)
    elif where == "config":
        changed = replace(changed, name="")
    plain = Parsed(comparison_report(store, runs[:2], runs[0], made=MADE))
    page = Parsed(comparison_report(store, [changed, runs[0]], runs[0], made=MADE))
    assert text in page.words
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    assert [attrs for attrs, _ in page.scripts] == [attrs for attrs, _ in plain.scripts]
    assert set(page.charts) <= set(plain.charts)


def test_a_chart_takes_no_markup_from_a_name(store, runs) -> None:
    name = '<a href="https://evil.example">x</a> %{y}'
    page = Parsed(comparison_report(store, [replace(runs[0], name=name), runs[1]]))
    for chart in page.charts.values():
        written = json.dumps(chart["light"])
        assert "<a " not in written
        assert not [trace for trace in chart["light"]["data"] if "%{y}" in trace.get("hovertemplate", "")]


def test_json_in_a_script_is_the_same_json() -> None:
    value = {ATTACK: ["<!--<script>", "&lt;", "\u2028"]}
    escaped = as_data(json.dumps(value))
    assert not set("<>&") & set(escaped)
    assert json.loads(escaped) == value


def test_title_is_escaped_and_may_hold_a_dollar(store, runs) -> None:
    page = Parsed(comparison_report(store, runs[:1], title="$body <b>bold</b>"))
    assert page.words.count("$body <b>bold</b>") == 2  # of the window, and on top
    assert "b" not in {tag for tag, _ in page.elements}


# ---- runs that do not fit --------------------------------------------------------------------------------------------


def test_one_without_a_result_is_listed_with_the_reason(store, runs) -> None:
    failed = store.create_run(
        kind="experiment", spec=Experiment("conv_digits", "conv_digits", "x86").to_dict(), name="broken",
        model="conv_digits",
    )  # fmt: skip
    store.finish(failed, FAILED, error="the layer conv9 is not there")
    page = Parsed(comparison_report(store, [runs[0], store.list_runs(ids=[failed])[0]], runs[0]))
    assert page.table("settings")["broken"]["What came of it"] == "no result: the layer conv9 is not there"
    assert page.table("runs")["broken"]["Computed with"] == "–"
    alone = Parsed(comparison_report(store, [store.list_runs(ids=[failed])[0]]))
    assert alone.charts.keys() == {"over-size"}  # which says why it is empty
    assert "None of these runs has" in json.dumps(alone.charts)


def test_one_on_other_data_is_shown_but_not_held_against_the_baseline(store, runs, few) -> None:
    (other,) = qlab.sweep("conv_digits", few.subset(range(200)).split(100), {"elsewhere": "x86"}, store=store)
    page = Parsed(comparison_report(store, [runs[0], other], runs[0]))
    assert "only runs on the same samples" in page.table("settings")["elsewhere"]["What came of it"]
    assert page.table("runs")["elsewhere"]["Against baseline"] == "–"
    assert page.table("runs")["elsewhere"]["Samples"] == "100"
    assert list(page.charts) == ["over-size", "accuracy", "layers-0", "layers-1"]
    float_dots = [name for name in page.charts["accuracy"]["light"]["layout"]["yaxis"]["ticktext"] if "float" in name]
    assert len(float_dots) == 2


def test_latency_has_a_chart_once_a_run_was_timed(store, few) -> None:
    timed, not_timed = qlab.sweep("conv_digits", few, {"timed": "x86", "not": "arm"}, store=store)
    store.note_latency(timed.id, 0.0012, 32)
    page = Parsed(comparison_report(store, [store.get_run(timed.id), not_timed]))
    assert list(page.charts) == ["over-size", "over-latency", "accuracy", "layers-0"]
    assert page.table("runs")["timed"]["Latency, integer kernels"] == "1.20 ms for 32"
    assert page.table("runs")["not"]["Latency, integer kernels"] == "–"
    ids = [i for trace in page.charts["over-latency"]["light"]["data"] for i in trace.get("customdata", [])]
    assert ids == [timed.id]


def test_without_labels_agreement_is_drawn(store, few) -> None:
    bare = replace(few, targets=None)
    (alone,) = qlab.sweep("conv_digits", bare, {"no labels": "x86"}, store=store)
    page = Parsed(comparison_report(store, [alone]))
    assert list(page.charts) == ["over-size", "layers-0"]
    assert page.charts["over-size"]["light"]["layout"]["yaxis"]["title"]["text"].startswith("Agreement")
    assert "The data have no labels" in page.words


def test_names_that_are_the_same_are_told_apart(store, runs) -> None:
    rows = rows_of(store, [replace(one, name="same") for one in runs[:2]], None)
    assert [row.title for row in rows] == [f"same ({one.id[:4]})" for one in runs[:2]]


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda store, runs: [], "no run to report on"),
        (lambda store, runs: [runs[0], runs[0]], "more than once"),
        (lambda store, runs: [store.get_run(runs[0].parent)], "job of kind sweep"),
    ],
    ids=["none", "twice", "no experiment"],
)
def test_what_cannot_be_reported_on_says_so(store, runs, choose, said) -> None:
    with pytest.raises(InvalidConfig, match=said):
        comparison_report(store, choose(store, runs))


# ---- size, time, dependencies ----------------------------------------------------------------------------------------


def test_ten_runs_of_a_large_network_are_small_and_quick(store, cifar) -> None:
    model, _, test = cifar
    mapping = qlab.presets["x86"]
    one = run(Experiment(model, test.subset(range(64)).split(32), mapping), store=store)
    copies = [replace(store.get_run(one.id), id=f"{one.id}{i}", name=f"run {i}") for i in range(10)]
    comparison_report(store, copies[:1])  # imports, and packs the library, which is kept
    start = time.perf_counter()
    made = comparison_report(store, copies)
    assert time.perf_counter() - start < 5  # 0.4 s on a quiet machine
    assert len(made) < 3_000_000
    assert len(Parsed(made).table("runs")) == 10


def test_the_app_is_not_needed() -> None:
    code = "import sys; sys.modules['streamlit'] = None; import qlab.export.report, qlab.export.comparison_table"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
