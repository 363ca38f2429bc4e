"""What the store gives: runs with their headline figures, and artifacts."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from qlab.errors import RunFailed

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
OPEN = (QUEUED, RUNNING)
ENDED = (DONE, FAILED, CANCELLED)


@dataclass(frozen=True)
class Headline:
    """The figures of a run that tables show and sort by.

    accuracy_low, accuracy_high: 95 % interval. backend: what they were computed with. samples: how many were seen, and
    dropped: why not all of them. latency: seconds of a call with latency_batch samples on integer kernels.
    """

    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    float_accuracy: float | None = None
    agreement: float | None = None
    size: int | None = None
    float_size: int | None = None
    samples: int | None = None
    backend: str | None = None
    dropped: str | None = None
    latency: float | None = None
    latency_batch: int | None = None

    @property
    def computed(self) -> str:
        """The backend; runs of before it was written down were all simulated."""
        return self.backend or "simulated"


@dataclass(frozen=True)
class Run:
    """One run as stored; times are seconds since 1970 (UTC), sizes bytes.

    `result` and `detail` are there only when the run was read alone, with Store.get_run: lists leave them out.
    """

    id: str
    created: float
    started: float | None
    finished: float | None
    status: str
    kind: str
    name: str
    spec_json: str = field(repr=False)
    spec_hash: str
    parent: str | None
    model: str
    data: str
    config: str
    model_hash: str | None
    data_hash: str | None
    content_key: str | None
    stage: str
    done: int
    total: int
    share: float
    seconds_left: float | None
    cancel_requested: bool
    attempts: int
    error: str | None
    headline: Headline
    owner: str
    worker_pid: int | None
    worker_host: str | None
    tags: tuple[str, ...]
    notes: str
    deleted: float | None
    rival: str | None = None
    best: str | None = None
    position: int | None = None
    result_json: str | None = field(default=None, repr=False)
    detail: str | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def seconds(self) -> float | None:
        """How long it ran, or has been running."""
        return None if self.started is None else (self.finished or time.time()) - self.started

    @cached_property
    def spec(self) -> dict[str, Any]:
        return json.loads(self.spec_json)

    @cached_property
    def result(self) -> dict[str, Any] | None:
        return None if self.result_json is None else json.loads(self.result_json)

    def require_result(self) -> dict[str, Any]:
        """The result; raises RunFailed with the run's own reason if there is none."""
        if self.result is None:
            reason = self.error or f"it is {self.status}"
            raise RunFailed(f"Run {self.id} has no result: {reason}.".replace("..", "."), detail=self.detail)
        return self.result


@dataclass(frozen=True)
class Artifact:
    hash: str
    kind: str
    media: str
    bytes: int
    original_name: str
    created: float
    path: Path

    @property
    def reference(self) -> str:
        """How an experiment names it."""
        return f"sha256:{self.hash}"
