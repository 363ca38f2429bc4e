"""Between a run on a worker and the app: progress and questions go as events, answers come as calls."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlab.errors import Cancelled
from qlab.lab.parcel import Blob, Call, Parcel
from qlab.lab.work import STOPPED

if TYPE_CHECKING:
    from distributed import Worker

BEGIN, PROGRESS, ARTIFACT, DERIVED = "begin", "progress", "artifact", "derived"  # what is said to the app
LOOK_EVERY = 0.2
_ID = itertools.count()


class _Question:
    def __init__(self) -> None:
        self.answered = threading.Event()
        self.found: Parcel | Blob | None = None
        self.part: Path | None = None  # where the pieces of the file go


class Line:
    """From a run to whoever called it: progress and questions go as events, answers come as calls in the event loop."""

    def __init__(self, worker: Worker, call: Call, home: Path) -> None:
        self.stopped = threading.Event()
        self._worker = worker
        self._call = call
        self._key = worker.get_current_task()
        self._home = home
        self._questions: dict[int, _Question] = {}

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the outcome. Raises nothing, asks nobody."""
        if self.stopped.is_set():
            return False
        # An app that is gone cannot say so; the scheduler then takes the task back, which shows here alone.
        task = self._worker.state.tasks.get(self._key)
        return task is not None and task.state in ("executing", "long-running")

    def say(self, what: str, **content: Any) -> None:
        self._worker.log_event(self._call.topic, {"call": self._call.id, "what": what, **content})

    def ask(self, what: str, **content: Any) -> tuple[Parcel | Blob | None, Path | None]:
        """The app's answer, and for a Blob that was not here the file its bytes arrived in. Raises Cancelled."""
        number, question = next(_ID), _Question()
        self._questions[number] = question
        try:
            self.say(what, ask=number, **content)
            while not question.answered.wait(LOOK_EVERY):
                if not self.wanted:
                    raise Cancelled(STOPPED)
        except BaseException:
            if question.part is not None:
                question.part.unlink(missing_ok=True)
            raise
        finally:
            del self._questions[number]
        return question.found, question.part

    def take_reply(self, ask: int, found: Parcel | Blob | None, complete: bool) -> bool:
        question = self._questions.get(ask)
        if question is None:
            return True
        if isinstance(found, Blob) and not complete and not (self._home / "artifacts" / found.hash).exists():
            return False
        question.found = found
        question.answered.set()
        return True

    def take_piece(self, ask: int, offset: int, data: bytes) -> bool:
        question = self._questions.get(ask)
        if question is None:
            return False
        if question.part is None:
            question.part = self._home / "incoming" / f"{self._call.id}-{ask}"
        with question.part.open("ab" if offset else "wb") as stream:
            stream.write(data)
        return True


# ---- called by the app, in the event loop of the worker: each returns at once ----------------------------------------

LINES: dict[str, Line] = {}  # of the runs going on in this process, by the id of their call


def reply(call: str, ask: int, found: Parcel | Blob | None, complete: bool) -> bool:
    """The answer to a question of a run. False: the bytes of this blob are wanted first, and the reply once more."""
    line = LINES.get(call)
    return True if line is None else line.take_reply(ask, found, complete)


def receive(call: str, ask: int, offset: int, data: bytes) -> bool:
    """A piece of the file a run asked for. False: it is not wanted any more."""
    line = LINES.get(call)
    return line is not None and line.take_piece(ask, offset, data)


def stop(call: str) -> None:
    line = LINES.get(call)
    if line is not None:
        line.stopped.set()
