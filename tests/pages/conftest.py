"""Pages without a browser: the app in AppTest, with a home of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from qlab.ui import warm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
        for key, value in (query or {}).items():
            at.query_params[key] = value
        for key, value in (state or {}).items():
            at.session_state[key] = value
        at.run()
        return at if page == "start" else at.switch_page(f"pages/lab/{page}.py").run()

    return go


def texts(at: AppTest, kind: str) -> str:
    """All elements of a kind, as one text: `texts(at, "caption")`."""
    return "\n".join(str(getattr(element, "value", "")) for element in at.get(kind))


@pytest.fixture
def read() -> Callable[[AppTest, str], str]:
    return texts
