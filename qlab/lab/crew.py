"""What the job runner asks of the workers it has, whether they are its own or those of an existing cluster."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from distributed import Client

    from qlab.lab.store import Run

MEMORY_EVENT = "worker-restart-memory"  # what a nanny calls it when it ends a worker over its limit
KILLED = (
    "The worker process of this run was ended from outside: it was killed, or the machine ran out of memory. "
    "Run it again; if that happens once more, use a smaller batch size."
)


@dataclass(eq=False)
class Ticket:
    """A run on its way through the runner.

    needs: hashes of artifacts its worker must have at hand. begun, lost: how often it went down with a worker that had
    begun it, and with one that had not.
    """

    run_id: str
    target: str
    max_attempts: int
    needs: tuple[str, ...] = ()
    begun: int = 0
    lost: int = 0
    stop_by: float | None = None  # when its worker is killed unless it ends by itself
    killed: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(4))  # a run that is tried again is another ticket

    @property
    def key(self) -> str:
        """Another one for each time it is given out."""
        return f"qlab-{self.run_id}-{self.token}-{self.begun}-{self.lost}"


@dataclass(frozen=True)
class Ended:
    """A ticket has come back. lost: its worker went down. reason: why the run failed, where its row does not say."""

    ticket: Ticket
    lost: bool = False
    reason: str | None = None
    detail: str | None = None


class Crew(Protocol):
    """Workers, each of which does one job at a time. Every method may raise RunFailed when the cluster is lost."""

    @property
    def places(self) -> int:
        """How many jobs can run at once; asks nobody."""

    @property
    def alive(self) -> bool:
        """Whether there is any use in giving a job to it."""

    def look(self) -> None:
        """See to the workers: called a few times a second. Raises QLabError if no job can be done here."""

    def free(self) -> int:
        """How many tickets can be given out now."""

    def give(self, ticket: Ticket) -> None: ...

    def ended(self) -> Sequence[Ended]:
        """Those that came back since the last call."""

    def stop(self, ticket: Ticket) -> None:
        """Tell the worker that its run was cancelled."""

    def kill(self, ticket: Ticket, run: Run) -> None:
        """End the worker process: its run was cancelled and it took no notice."""

    def why_lost(self, run: Run) -> str:
        """What to say of a run whose worker went down."""

    def close(self) -> None: ...


def over_memory(client: Client, run: Run) -> bool:
    """Whether a nanny ended the worker of this run for the memory it took."""
    events = client.get_events(MEMORY_EVENT)
    return any(e["pid"] == run.worker_pid and at > (run.started or 0) for at, e in events or ())
