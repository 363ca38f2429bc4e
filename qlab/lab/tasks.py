"""What a worker process executes. Light to import: a worker loads torch only when it has something to do with it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qlab.errors import InvalidConfig, QLabError
from qlab.lab.store import DONE, RUNNING, Store

if TYPE_CHECKING:
    from qlab.lab.experiment import Experiment
    from qlab.lab.sweep import Sweep

LOG = logging.getLogger("qlab.lab")


@dataclass(frozen=True)
class Row:
    """What is written of a run before it starts."""

    spec: Mapping[str, Any]
    name: str = ""
    spec_hash: str = ""
    model: str = ""
    data: str = ""
    config: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """As Store.create_run takes them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _as_given(_store: Store, arguments: Mapping[str, Any]) -> Row:
    return Row(spec=dict(arguments))


@dataclass(frozen=True)
class Kind:
    """A kind of job. target: "module:function", called as function(work, spec) -> Outcome in a worker.

    describe: from the arguments of submit to the row. The row's spec is all the worker gets: a run can be repeated
    from its row. here: not for a worker but for a thread of the runner's own process, as function(runner, run_id) with
    the row started; for light coordination that reads the store and hands in other runs.
    """

    target: str
    describe: Callable[[Store, Mapping[str, Any]], Row] = field(default=_as_given)
    here: bool = False


def describe_experiment(store: Store, arguments: Mapping[str, Any], *, travels: bool = True) -> Row:
    """travels: to another process. Otherwise a model in memory is allowed; the row then only says which it was."""
    from qlab.lab import sources
    from qlab.lab.experiment import Experiment

    if set(arguments) != {"experiment"} or not isinstance(arguments["experiment"], Experiment):
        raise InvalidConfig("A job of kind experiment takes experiment=Experiment(…) and nothing else.")
    experiment = arguments["experiment"]
    labels = _labels(store, experiment, sources.config_label(experiment))
    experiment = sources.portable(experiment, store, travels=travels)
    return Row(spec=experiment.to_dict(), spec_hash=experiment.spec_hash, **labels)


def _labels(store: Store, described: Experiment | Sweep, config: str) -> dict[str, str]:
    """What a person calls its parts."""
    from qlab.lab import sources

    model, data = sources.label(described.model, store), sources.label(described.data, store)
    return {"name": described.name, "model": model, "data": data, "config": config}


def describe_prepare(store: Store, arguments: Mapping[str, Any], *, travels: bool = True) -> Row:
    """model, data, and any of batch_size, calibration_samples, seed, backend: what Experiment has. mapping: what the
    calibration has to know of a config (`QConfigMapping.preparation`)."""
    from qlab.config import QConfigMapping
    from qlab.lab.experiment import Experiment

    experiment = Experiment(**{"mapping": QConfigMapping(), **arguments})
    row = describe_experiment(store, {"experiment": experiment}, travels=travels)
    return Row(spec=row.spec, model=row.model, data=row.data)


def describe_sweep(store: Store, arguments: Mapping[str, Any], *, travels: bool = True) -> Row:
    """sweep=Sweep(…)."""
    from qlab.lab import sources
    from qlab.lab.sweep import Sweep

    if set(arguments) != {"sweep"} or not isinstance(arguments["sweep"], Sweep):
        raise InvalidConfig("A job of kind sweep takes sweep=Sweep(…) and nothing else.")
    sweep = arguments["sweep"]
    labels = _labels(store, sweep, f"{len(sweep.configs)} configs")
    return Row(spec=sources.portable(sweep, store, travels=travels).to_dict(), **labels)


def describe_export(store: Store, arguments: Mapping[str, Any]) -> Row:
    """experiment=Experiment(…); its name says nothing about the files, so that equal requests have equal specs."""
    row = describe_experiment(store, arguments)
    return Row(spec={**row.spec, "name": ""}, model=row.model, data=row.data, config=row.config)


def describe_runtime(store: Store, arguments: Mapping[str, Any]) -> Row:
    """experiment=Experiment(…), and any of batch, threads: of the calls that are timed, and again: although the store
    has a report. The name of the experiment says nothing here."""
    given = dict(arguments)
    again = bool(given.pop("again", False))
    calls = _calls(given, batch=32)
    row = describe_export(store, given)
    return Row(
        spec={"experiment": row.spec, "again": again, **calls}, model=row.model, data=row.data, config=row.config
    )


def describe_sensitivity(store: Store, arguments: Mapping[str, Any]) -> Row:
    """experiment=Experiment(…), whose name says nothing here, and any field of `lab.sensitivity.Question`."""
    from qlab.lab.sensitivity import Question

    given = dict(arguments)
    asked = {name: given.pop(name) for name in Question.__dataclass_fields__ if name in given}
    row = _of_config(store, given)
    spec = {"experiment": row.spec, "question": Question(**asked).to_dict()}
    return Row(spec=spec, model=row.model, data=row.data, config=row.config)


def _of_config(store: Store, arguments: Mapping[str, Any]) -> Row:
    """As describe_export, for what looks into a config: many networks under it, none of them trained or edited."""
    row = describe_export(store, arguments)
    if arguments["experiment"].changes:
        raise InvalidConfig(
            "This looks into a config, and would say nothing of a network that was trained or edited by hand: leave "
            "training and edits out of the experiment."
        )
    return row


def describe_latency(store: Store, arguments: Mapping[str, Any]) -> Row:
    """runs=[ids of finished experiments of one network], and any of batch, threads: of the calls that are timed."""
    given = dict(arguments)
    ids = list(given.pop("runs", ()))
    calls = _calls(given, batch=1)
    if given or not ids:
        raise InvalidConfig("A job of kind latency takes runs=[ids], and batch and threads if they are not the usual.")
    found = {run.id: run for run in store.list_runs(limit=None, ids=ids, kind="experiment", status=DONE)}
    if missing := [i for i in ids if i not in found]:
        raise InvalidConfig(f"These are not finished experiments of this store: {', '.join(missing)}.")
    first = found[ids[0]]
    spec = {"experiments": {i: found[i].spec for i in ids}, **calls}
    return Row(spec=spec, model=first.model, data=first.data, config=f"{len(ids)} configs")


def _calls(given: dict[str, Any], *, batch: int) -> dict[str, int]:
    """batch and threads of timed calls, taken out of what was given. Raises InvalidConfig."""
    calls = {"batch": given.pop("batch", batch), "threads": given.pop("threads", 2)}
    for name, value in calls.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidConfig(f"{name} is {value!r}: give a whole number of at least 1.")
    return calls


def describe_analysis(store: Store, arguments: Mapping[str, Any]) -> Row:
    """experiment=Experiment(…), whose name says nothing here."""
    row = _of_config(store, arguments)
    return Row(spec={"experiment": row.spec}, model=row.model, data=row.data, config=row.config)


KINDS: Mapping[str, Kind] = {
    "experiment": Kind("qlab.lab.run:experiment_task", describe_experiment),
    "prepare": Kind("qlab.lab.run:prepare_task", describe_prepare),
    "sweep": Kind("qlab.lab.drive:drive", describe_sweep, here=True),
    "export": Kind("qlab.lab.export:export_task", describe_export),
    "latency": Kind("qlab.lab.timing:latency_task", describe_latency),
    "runtime": Kind("qlab.lab.inspect:runtime_task", describe_runtime),
    "sensitivity": Kind("qlab.lab.sensitivity:sensitivity_task", describe_sensitivity),
    "diagnose": Kind("qlab.lab.analyses:diagnose_task", describe_analysis),
    "advice": Kind("qlab.lab.analyses:advice_task", describe_analysis),
    "stability": Kind("qlab.lab.analyses:stability_task", describe_analysis),
}


@dataclass(frozen=True)
class Order:
    """What travels to a worker: names only, no arrays. Database and files are found at the same place there."""

    run_id: str
    target: str
    home: str
    url: str


def find_task(target: str) -> Callable[..., Any]:
    """From "module:function" to the function."""
    module, function = target.split(":")
    return getattr(importlib.import_module(module), function)


STARTED, TAKEN = "started", "taken"


def execute(order: Order) -> str:
    """Carry out one run in this process. The outcome is in the store; the answer says only whether it was taken up.

    TAKEN: another worker had it.
    """
    from qlab.lab.work import Work, carry_out

    store = Store(order.home, order.url)
    try:
        run = store.get_run(order.run_id)
        if not store.start(order.run_id):
            return TAKEN if run.status == RUNNING else STARTED
        task = find_task(order.target)
        try:
            carry_out(task, Work(store, order.run_id), run.spec)
        except QLabError as error:
            LOG.info("run %s ended: %s", order.run_id, error)  # it stands in the row, with its reason
        except Exception:
            LOG.exception("run %s failed", order.run_id)  # in the row too
        return STARTED
    finally:
        store.close()
