"""Pages without a browser: the app in AppTest, with a home of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from qlab.config import QConfigMapping
from qlab.lab.tasks import KINDS
from qlab.ui import cache, jobs, warm
from tests.pages.elements import texts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def _samples_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLAB_HOME in which every sample has its calibration and its float accuracy, so that pages start no job."""
    from qlab.lab.run import prepare
    from qlab.lab.store import Store
    from qlab.samples import sample_names

    home = tmp_path_factory.mktemp("prepared") / "home"
    store = Store(home)
    for name in sample_names():
        prepare(name, name, store=store)
    store.close()
    return home


@pytest.fixture(scope="module")
def prepared_home(_samples_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for one module: what its jobs store here stands in the home of each of its tests, and of no others."""
    home = tmp_path_factory.mktemp("module") / "home"
    shutil.copytree(_samples_home, home)
    return home


@pytest.fixture(autouse=True)
def home(prepared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A QLAB_HOME of its own for each test, and caches that know nothing of the test before."""
    home = tmp_path / "home"
    shutil.copytree(prepared_home, home)
    monkeypatch.setenv("QLAB_HOME", str(home))
    # The warm-up is there for a person's first click. Here it would start a cluster of workers for every test.
    monkeypatch.setattr(warm, "up", lambda: None)
    _clear()
    yield home
    _clear()


@pytest.fixture
def fresh_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty QLAB_HOME instead, as on the first visit of all: the first page starts a job."""
    monkeypatch.setenv("QLAB_HOME", str(tmp_path / "fresh"))
    return tmp_path / "fresh"


def _clear() -> None:
    """Forgets everything; this also ends the job runner and its workers."""
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture
def open_page() -> Callable[..., AppTest]:
    """Opens a page: `open_page("experiment", query={"model": "conv_digits"}, state={"lab.tensor": "fc"})`."""

    def go(
        page: str = "start", *, query: dict[str, str] | None = None, state: dict[str, object] | None = None
    ) -> AppTest:
        at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
        at.query_params.update(query or {})
        for key, value in (state or {}).items():
            at.session_state[key] = value
        at.run()
        return at if page == "start" else at.switch_page(path_of(page)).run()

    return go


def path_of(page: str) -> str:
    """The file of a page, as AppTest wants it: `pages/lab/runs.py` of `runs`."""
    (path,) = ROOT.glob(f"pages/*/{page}.py")
    return str(path.relative_to(ROOT))


@pytest.fixture
def open_under(open_page: Callable[..., AppTest]) -> Callable[..., AppTest]:
    """Opens a page on a sample under a config: `open_under("graph", presets["x86"], "conv_digits", layer="conv1")`."""

    def go(page: str, mapping: QConfigMapping, model: str, **query: str) -> AppTest:
        at = open_page(page, query={"model": model, **query}, state={"lab.mapping": mapping})
        assert not at.exception
        return at

    return go


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """(kind, arguments) of the jobs a page submits; they are stored and nobody takes them up."""
    out = []

    def submit(kind: str, **arguments: Any) -> str:
        out.append((kind, arguments))
        return cache.store().create_run(kind=kind, **KINDS[kind].describe(cache.store(), arguments).columns)

    monkeypatch.setattr(jobs, "submit", submit)
    return out


@pytest.fixture
def read() -> Callable[..., str]:
    return texts
