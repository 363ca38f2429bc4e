"""Leads a sweep: one calibration, then its configs one after the other or side by side, until all are done.

Light work: it reads the store and starts other runs. The rows of all configs are written before the first one starts:
whatever happens (a stop, a lost worker, a killed app), what is done stays done and the rest can be taken up again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from qlab.errors import Cancelled, InvalidConfig, RunFailed
from qlab.lab.progress import Progress
from qlab.lab.store import CANCELLED, DONE, FAILED, Headline, Run, Store
from qlab.lab.sweep import Sweep
from qlab.lab.work import STOPPED, recorded
from qlab.memory import settled

if TYPE_CHECKING:
    from qlab.calibration import Calibration
    from qlab.lab.jobs import JobRunner
    from qlab.lab.progress import ProgressCallback

RESULT_VERSION = 1
TICK = 0.02
REPORT_EVERY = 0.3
OVER_BUDGET = "not run: the budget of the sweep was used up"
WITH_SWEEP = "the sweep was stopped before it came to this config"


class Pool(Protocol):
    """Who carries out the parts of a sweep."""

    @property
    def places(self) -> int: ...

    def start(self, run_id: str, needs: Sequence[str]) -> None:
        """Have a queued run carried out, now or soon. needs: artifacts it will ask for."""

    def stop(self, run_id: str) -> None: ...

    def rest(self) -> None:
        """Wait a moment for something to happen."""


class Driver:
    """One sweep on its way. Raises Cancelled when it is to stop."""

    def __init__(
        self, store: Store, sweep_id: str, sweep: Sweep, pool: Pool, progress: ProgressCallback | None = None,
        given: bool = False,
    ) -> None:  # fmt: skip
        """given: a calibration is given, so that nothing is to be prepared and nothing equal is known."""
        self.store, self.id, self.sweep, self.pool = store, sweep_id, sweep, pool
        self._progress = progress
        self._given = given
        self._begun = time.monotonic()
        self._reported = 0.0
        self._times: list[float] = []
        self._best: Run | None = None
        self._ended: dict[str, Run] = {}
        self._reused: dict[str, str] = {}
        self._prepared: Run | None = None

    # ---- the whole -----------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Carry the sweep to its end and write its result."""
        try:
            ids = self._rows()
            if not self._given:
                self._prepared = self._prepare()
            self._configs(ids)
        except BaseException:
            self._leave(WITH_SWEEP)
            raise
        self._finish(ids)

    def _rows(self) -> list[str]:
        """Ids of the configs' rows in the order of the configs; written now unless this sweep was begun before."""
        there = self._children()
        if there:
            self.store.reopen([run.id for run in there if run.status in (FAILED, CANCELLED)])
            return [run.id for run in there]
        from qlab.lab.sources import config_label, portable
        from qlab.lab.tasks import describe_experiment

        experiments = portable(self.sweep, self.store, travels=False).experiments
        shared = describe_experiment(self.store, {"experiment": experiments[0]}, travels=False).columns
        rows = [
            {**shared, "spec": e.to_dict(), "spec_hash": e.spec_hash, "name": e.name, "config": config_label(e)}
            for e in experiments
        ]
        return self.store.create_runs(rows, kind="experiment", parent=self.id)

    def _children(self) -> list[Run]:
        return sorted(
            self.store.list_runs(limit=None, parent=self.id, kind="experiment"), key=lambda run: run.position or 0
        )

    def _prepare(self) -> Run:
        """Calibration, float evaluation and exported graph: once, before the configs."""
        found = self.store.list_runs(limit=1, parent=self.id, kind="prepare", status=DONE)
        if not found:
            from qlab.lab.tasks import describe_prepare

            s = self.sweep
            row = describe_prepare(
                self.store,
                {
                    "model": s.model, "data": s.data, "batch_size": s.batch_size, "seed": s.seed, "backend": s.backend,
                    "calibration_samples": s.calibration_samples,
                    "mapping": s.experiments[0].resolved_mapping.preparation,
                },
                travels=False,
            )  # fmt: skip
            (run_id,) = self.store.create_runs([row.columns], kind="prepare", parent=self.id)
            self.pool.start(run_id, ())
            while not self.store.ended_of([run_id]):
                self.look([run_id])
                self.pool.rest()
            found = [self.store.get_run(run_id)]
        run = self.store.get_run(found[0].id)
        if run.status == CANCELLED:
            raise Cancelled(STOPPED)
        if run.status == FAILED:
            raise RunFailed(f"The network and its data could not be prepared: {run.error}", detail=run.detail)
        return run

    def _configs(self, ids: Sequence[str]) -> None:
        queue = [ids[i] for i in self.sweep.order]
        for run in self.store.list_runs(limit=None, ids=ids, status=(DONE,)):
            self._take_in(run, computed=False)
        queue = [run_id for run_id in queue if run_id not in self._ended]
        active: list[str] = []
        while queue or active:
            while queue and len(active) < self.pool.places and not self._spent(len(active)):
                run_id = queue.pop(0)
                if not self._reuse(run_id):
                    self._start(run_id)
                    active.append(run_id)
            if queue and self._spent(0) and not active:
                self._leave(OVER_BUDGET)
                return
            over = self.store.ended_of(active) if active else set()
            for run in self.store.list_runs(limit=None, ids=sorted(over)):
                self._take_in(run, computed=True)
            active = [run_id for run_id in active if run_id not in over]
            self.look(active)
            if active and not over:
                self.pool.rest()

    def _spent(self, active: int) -> bool:
        """Whether the budget allows no further config; one is always run."""
        count, most, seconds = len(self._ended) + active, self.sweep.most, self.sweep.seconds
        if most is not None and count >= most:
            return True
        return seconds is not None and count > 0 and time.monotonic() - self._begun >= seconds

    # ---- one config ----------------------------------------------------------------------------------------------

    def _reuse(self, run_id: str) -> bool:
        """Take the result of an earlier run that computed the same."""
        if self._prepared is None:
            return False
        from qlab.lab.experiment import Experiment
        from qlab.lab.run import content_key_of

        run, prepared = self.store.get_run(run_id), self._prepared
        assert prepared.model_hash is not None
        assert prepared.data_hash is not None
        batch = prepared.require_result()["batch"]
        experiment = Experiment.from_dict(run.spec)
        key = content_key_of(prepared.model_hash, prepared.data_hash, batch, experiment)
        same = self.store.list_runs(limit=20, content_key=key, status=DONE, kind="experiment")
        # One that was dropped saw a part of the samples only.
        other = next((o for o in same if o.id != run_id and o.headline.dropped is None), None)
        if other is None:
            return False
        result = self.store.get_run(other.id).require_result()
        self.store.identify(
            run_id, model_hash=prepared.model_hash, data_hash=prepared.data_hash, content_key=key
        )  # fmt: skip
        if not self.store.finish(run_id, DONE, result={**result, "reused": other.id}, headline=other.headline):
            return False
        self._reused[run_id] = other.id
        self._take_in(self.store.get_run(run_id), computed=False)
        return True

    def _start(self, run_id: str) -> None:
        needs = list(self._prepared.require_result()["artifacts"].values()) if self._prepared else []
        if self.sweep.eliminate and self._best is not None:
            rival = self.store.get_run(self._best.id).require_result()["artifacts"]["quantized evaluation"]
            self.store.identify(run_id, rival=rival)
            needs.append(rival)
        self.pool.start(run_id, needs)

    def _take_in(self, run: Run, *, computed: bool) -> None:
        self._ended[run.id] = run
        if run.status == DONE:
            if computed and run.seconds is not None:
                self._times.append(run.seconds)
            if run.headline.dropped is None and (self._best is None or _better(run.headline, self._best.headline)):
                self._best = run
                self.store.note_best(self.id, run.id, run.headline)

    # ---- on the way ----------------------------------------------------------------------------------------------

    def look(self, active: Sequence[str]) -> None:
        """Say how far it is with these runs going on. Raises Cancelled when it is to stop."""
        done, total = len(self._ended), len(self.sweep.configs)
        if self._progress is not None:
            self._progress("configs" if self._ended or self._prepared else "prepare", done, total)
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY and done < total:
            return
        self._reported = now
        running = self.store.list_runs(limit=None, ids=list(active)) if active else []
        share = (done + sum(run.share for run in running)) / total
        names = [run.name or run.config for run in running]
        stage = running[0].stage if running and self._prepared is None else ", ".join(names)
        left = None
        if self._times:
            left = statistics.median(self._times) * max(total - done - sum(r.share for r in running), 0)
            left /= max(min(self.pool.places, total - done), 1)
        if self._prepared is None and not self._given:
            share = 0.0
        if not self.store.report(self.id, Progress(stage or "configs", done, total, min(share, 1.0), left)):
            raise Cancelled(STOPPED)

    def _leave(self, reason: str) -> None:
        """End what has not been run."""
        for run in self._children():
            if run.status == "running":
                self.pool.stop(run.id)
            elif not run.ended:
                self.store.finish(run.id, CANCELLED, error=reason)

    def _finish(self, ids: Sequence[str]) -> None:
        runs = {run.id: run for run in self._children()}
        failed = [i for i in ids if runs[i].status == FAILED]
        if len(failed) == len(ids):
            first = self.store.get_run(failed[0])
            raise RunFailed(f"No config could be carried out. The first: {first.error}", detail=first.detail)
        computed = [r for i, r in runs.items() if r.status == DONE and i not in self._reused]
        full = max((r.headline.samples or 0 for r in runs.values()), default=0)
        result: dict[str, Any] = {
            "version": RESULT_VERSION,
            "runs": list(ids),
            "best": self._best.id if self._best else None,
            "prepare": self._prepared.id if self._prepared else None,
            "dropped": [i for i in ids if runs[i].headline.dropped is not None],
            "reused": self._reused,
            "failed": failed,
            "not_run": [i for i in ids if runs[i].status == CANCELLED],
            # What elimination saved: samples that were evaluated, of those that all computed configs would have needed.
            "samples": {
                "evaluated": sum(r.headline.samples or 0 for r in computed),
                "in_full": full * len(computed),
            },
            "seconds": time.monotonic() - self._begun,
        }
        self.store.report(self.id, Progress("configs", len(self._ended), len(ids), 1.0, 0.0))
        headline = self._best.headline if self._best else Headline()
        if not self.store.finish(self.id, DONE, result=result, headline=headline):
            raise Cancelled(STOPPED)


def _better(a: Headline, b: Headline) -> bool:
    """More accurate, or as accurate and smaller. Without labels agreement stands for accuracy."""

    def rank(h: Headline) -> tuple[float, float]:
        right = h.accuracy if h.accuracy is not None else h.agreement
        return (-1.0 if right is None else right, -float(h.size or 0))

    return rank(a) > rank(b)


# ---- in this process -------------------------------------------------------------------------------------------------


class _Here:
    """Carries out each part at once, in this process."""

    places = 1

    def __init__(self, store: Store, carry: Callable[[str], None]) -> None:
        self.store, self._carry = store, carry

    def start(self, run_id: str, needs: Sequence[str]) -> None:
        self._carry(run_id)

    def stop(self, run_id: str) -> None:
        self.store.finish(run_id, CANCELLED, error=WITH_SWEEP)

    def rest(self) -> None:
        return


def sweep_here(
    store: Store, sweep: Sweep, calib: Calibration | None = None, progress: ProgressCallback | None = None
) -> str:
    """Carry out a sweep in this process; gives its id. Raises what `sweep` raises."""
    import logging

    from qlab.errors import QLabError
    from qlab.lab import run as runs
    from qlab.lab import sources
    from qlab.lab.tasks import describe_sweep
    from qlab.lab.work import Work, carry_out

    # Opened and split once, not for each config.
    opened = sweep.replace(
        model=sources.open_model(sweep.model, store),
        data=sources.open_data(sweep.data, store, sweep.calibration_samples, sweep.seed),
        calibration_samples=None,
    )
    row = describe_sweep(store, {"sweep": sweep}, travels=False)
    sweep_id = store.create_run(kind="sweep", **row.columns)
    store.start(sweep_id)

    def carry(run_id: str) -> None:
        run = store.get_run(run_id)
        if not store.start(run_id):
            return
        shared = opened.experiment(run.position or 0)
        work = Work(store, run_id, lambda *_: driver.look([run_id]))
        try:
            if run.kind == "prepare":
                carry_out(lambda w, _spec: runs._prepare(w, shared)[1], work, {})
            else:
                carry_out(lambda w, _spec: runs._experiment(w, shared, calib), work, {})
        except Cancelled:
            raise
        except QLabError as error:  # in the row, with its reason: this config failed, the others go on
            logging.getLogger("qlab.lab").info("run %s ended: %s", run_id, error)

    driver = Driver(store, sweep_id, sweep, _Here(store, carry), progress, given=calib is not None)
    with recorded(store, sweep_id), settled():
        driver.go()
    return sweep_id


# ---- on the workers of a runner --------------------------------------------------------------------------------------


class _OnWorkers:
    def __init__(self, runner: JobRunner) -> None:
        self.runner = runner

    @property
    def places(self) -> int:
        return max(self.runner.places, 1)

    def start(self, run_id: str, needs: Sequence[str]) -> None:
        self.runner.hand_in(run_id, needs=needs)

    def stop(self, run_id: str) -> None:
        self.runner.store.request_cancel(run_id)

    def rest(self) -> None:
        if self.runner.closing:
            raise Cancelled(STOPPED)
        time.sleep(TICK)


def drive(runner: JobRunner, sweep_id: str) -> None:
    """What a job of kind "sweep" does, in a thread of the app: the row is started already."""
    store = runner.store
    Driver(store, sweep_id, Sweep.from_dict(store.get_run(sweep_id).spec), _OnWorkers(runner)).go()


def resume(runner: JobRunner, sweep_id: str) -> None:
    """Take up a sweep that was stopped or interrupted, in its own row. Raises InvalidConfig for any other run."""
    run = runner.store.get_run(sweep_id)
    if run.kind != "sweep" or not runner.store.reopen([sweep_id]):
        raise InvalidConfig(
            f"Run {sweep_id} is a {run.status} {run.kind}: only a sweep that was stopped can be taken up."
        )
    runner.hand_in(sweep_id)


def sweep_on(runner: JobRunner, sweep: Sweep, progress: ProgressCallback | None = None) -> str:
    """Submit a sweep and wait for its end; gives its id. Raises RunFailed, Cancelled."""
    sweep_id = runner.submit("sweep", sweep=sweep)
    try:
        going = True
        while going:
            going = runner.store.is_open(sweep_id)  # before the look, so that the end is told too
            if progress is not None:
                run = runner.store.get_run(sweep_id)
                progress(run.stage, run.done, run.total)
            if going:
                time.sleep(10 * TICK)
    except BaseException:
        runner.cancel(sweep_id)
        raise
    run = runner.store.get_run(sweep_id)
    if run.status == CANCELLED:
        raise Cancelled(STOPPED)
    run.require_result()
    return sweep_id
