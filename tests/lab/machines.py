"""A Dask cluster of processes that share no folder with the app, as other machines would not."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qlab.lab.store import Store

LONG = 60.0
ROOT = Path(__file__).resolve().parents[2]

# What a worker must not touch: the folder of the app, which on another machine would not be there.
GUARD = """
import os, sys

def guard(event, arguments):
    if event in ("open", "sqlite3.connect", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.link"):
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(os.environ["HIDDEN"]):
            raise PermissionError(f"this worker has no {path}")

sys.addaudithook(guard)
"""


def until(condition: Callable[[], object], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@dataclass
class Machines:
    """Processes in folders of their own. app: the folder that workers must not touch."""

    folder: Path
    app: Path
    processes: list[subprocess.Popen]

    def start(self, name: str, *words: str, **environment: str) -> subprocess.Popen:
        """`python -m dask …` with its own home and working folder."""
        folder = self.folder / name
        folder.mkdir()
        here = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
        own = {"HOME": str(folder), "QLAB_HOME": str(folder / "lab"), "QLAB_DB": "sqlite:////nowhere/at/all.db"}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *words, *here], cwd=folder, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT), "HIDDEN": str(self.app)} | own | environment,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def scheduler(self) -> str:
        file = self.folder / "scheduler.json"
        self.start("scheduler", "scheduler", "--port", "0", "--scheduler-file", str(file))
        until(lambda: file.exists() and '"address"' in file.read_text())
        return json.loads(file.read_text())["address"]

    def worker(self, name: str, address: str, *words: str, **environment: str) -> subprocess.Popen:
        guard = self.folder / "guard.py"
        guard.write_text(GUARD)
        return self.start(
            name, "worker", address, "--nthreads", "1", "--local-directory", str(self.folder / name), "--preload",
            str(guard), *words, **environment,
        )  # fmt: skip


@contextmanager
def machines(factory: pytest.TempPathFactory) -> Iterator[Machines]:
    made = Machines(factory.mktemp("cluster"), factory.mktemp("app"), [])
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()  # the workers are daemons of their nannies and end with them
        for process in made.processes:
            process.wait(20)


class CountingStore(Store):
    """Also counts how often each run was ended."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.ends: Counter[str] = Counter()

    def finish(self, run_id: str, status: str, **more: Any) -> bool:
        ended = super().finish(run_id, status, **more)
        self.ends[run_id] += ended
        return ended
