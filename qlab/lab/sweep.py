"""`sweep`: many configs of one network on one data set, from one calibration, each stored as a run of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qlab.config import QConfigMapping
from qlab.difference import extras
from qlab.errors import InvalidConfig
from qlab.lab.experiment import Experiment, read_spec
from qlab.lab.grid import Grid, coverage_order, short_names

if TYPE_CHECKING:
    from qlab.calibration import Calibration
    from qlab.lab.jobs import JobRunner
    from qlab.lab.progress import ProgressCallback
    from qlab.lab.store import Run, Store

VERSION = 1
SQNR_SAMPLES = 64  # of each config: enough to rank layers, and a sweep has many configs
MOST_CONFIGS = 5000
Mappings = Grid | Mapping[str, QConfigMapping | str] | Sequence[QConfigMapping | str]


@dataclass(frozen=True)
class Sweep:
    """What to compare, and how far to go. Frozen, checked, JSON.

    model, data, batch_size, calibration_samples, seed, backend, sqnr_samples: as in Experiment. configs: pairs of a
    name and a mapping (or the name of a preset), equal ones once. eliminate: end the evaluation of what is worse than
    the best so far beyond chance. most, seconds: budget of configs and of time; with either, or with eliminate, the
    order is one in which the first configs already cover the space. Raises InvalidConfig.
    """

    model: Any
    data: Any = field(hash=False)
    configs: tuple[tuple[str, QConfigMapping | str], ...]
    batch_size: int = field(default=64, kw_only=True)
    calibration_samples: int | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    name: str = field(default="", kw_only=True)
    backend: str = field(default="auto", kw_only=True)
    sqnr_samples: int = field(default=SQNR_SAMPLES, kw_only=True)
    eliminate: bool = field(default=False, kw_only=True)
    most: int | None = field(default=None, kw_only=True)
    seconds: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InvalidConfig(f"name is {self.name!r}: give a text.")
        if not self.configs:
            raise InvalidConfig("A sweep needs at least one config.")
        if len(self.configs) > MOST_CONFIGS:
            raise InvalidConfig(f"{len(self.configs):,} configs are more than the {MOST_CONFIGS:,} a sweep may have.")
        if self.most is not None and (isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 1):
            raise InvalidConfig(f"most is {self.most!r}: use a whole number from 1 up, or None.")
        if self.seconds is not None and not (isinstance(self.seconds, int | float) and self.seconds > 0):
            raise InvalidConfig(f"seconds is {self.seconds!r}: use a number above 0, or None.")
        unique: dict[str, tuple[str, QConfigMapping | str]] = {}
        for position, config in enumerate(self.configs):
            experiment = self.experiment(position)
            unique.setdefault(experiment.spec_hash, config)
        object.__setattr__(self, "model", experiment.model)
        object.__setattr__(self, "data", experiment.data)
        object.__setattr__(self, "configs", tuple(unique.values()))

    @classmethod
    def of(cls, model: Any, data: Any, mappings: Mappings, **settings: Any) -> Sweep:
        """From a Grid, from named mappings, or from a sequence of mappings and names of presets."""
        if isinstance(mappings, Grid):
            mappings = mappings.configs()
        if not isinstance(mappings, Mapping):
            mappings = dict(zip(_names(list(mappings)), mappings, strict=True))
        return cls(model, data, tuple(mappings.items()), **settings)

    @property
    def experiments(self) -> list[Experiment]:
        """One for each config, in the order given."""
        return [self.experiment(position) for position in range(len(self.configs))]

    @property
    def order(self) -> list[int]:
        """Positions in the order they are to be run."""
        if not self.eliminate and self.most is None and self.seconds is None:
            return list(range(len(self.configs)))
        return coverage_order([experiment.resolved_mapping for experiment in self.experiments])

    def experiment(self, position: int) -> Experiment:
        """That of one config, by its place in the order given."""
        name, mapping = self.configs[position]
        return Experiment(
            self.model, self.data, mapping, batch_size=self.batch_size, calibration_samples=self.calibration_samples,
            seed=self.seed, name=name, backend=self.backend, sqnr_samples=self.sqnr_samples,
        )  # fmt: skip

    def replace(self, **changes: Any) -> Sweep:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; see Experiment.to_dict for objects in memory."""
        shared = self.experiments[0].to_dict()
        return {
            "version": VERSION, "name": self.name, "model": shared["model"], "data": shared["data"],
            "configs": [
                {"name": name, "mapping": m if isinstance(m, str) else m.to_dict()} for name, m in self.configs
            ],
            "batch_size": self.batch_size, "calibration_samples": self.calibration_samples, "seed": self.seed,
            "backend": self.backend, "sqnr_samples": self.sqnr_samples, "eliminate": self.eliminate,
            "most": self.most, "seconds": self.seconds,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Sweep:
        """From JSON; "grid", with the fields of Grid, may stand beside "configs" or for it. Raises InvalidConfig."""
        if not isinstance(d, Mapping) or d.get("version") != VERSION:
            raise InvalidConfig(f"A sweep is a table with version {VERSION}, model, data and configs.")
        d = {k: v for k, v in d.items() if k != "version"}
        if "grid" in d:
            d["configs"] = [*d.get("configs", ()), *_of_grid(d.pop("grid"))]
        unknown, missing = set(d) - set(cls.__dataclass_fields__), {"model", "data", "configs"} - set(d)
        if unknown or missing:
            raise InvalidConfig(
                f"A sweep has the fields {', '.join(cls.__dataclass_fields__)}; "
                + (
                    f"it has no {', '.join(sorted(unknown))}."
                    if unknown
                    else f"{', '.join(sorted(missing))} is missing."
                )
            )
        configs: list[tuple[str, QConfigMapping | str]] = []
        for entry in d["configs"]:
            if isinstance(entry, str):
                entry = {"name": entry, "mapping": entry}
            if not isinstance(entry, Mapping) or "mapping" not in entry:
                raise InvalidConfig('configs is a list of presets, or of tables {"name": …, "mapping": …}.')
            mapping = entry["mapping"]
            made = mapping if isinstance(mapping, str) else QConfigMapping.from_dict(mapping)
            configs.append((str(entry.get("name") or (mapping if isinstance(mapping, str) else "")), made))
        return cls(**{**d, "configs": tuple(configs)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sweep:
        """Read a spec from a JSON file. Raises InvalidConfig."""
        return cls.from_dict(read_spec(path))


class SweepRuns(Sequence["Run"]):
    """The runs of a sweep in the order of its configs, each with its headline; `Store.get_run` has the whole result.

    id: of the sweep. best: the run with the highest accuracy (agreement without labels), of equals the smallest.
    summary: what was dropped, taken from earlier runs, failed or left out, and how many samples were evaluated.
    """

    def __init__(self, store: Store, sweep_id: str) -> None:
        self.id = sweep_id
        self.run = store.get_run(sweep_id)
        self.summary: dict[str, Any] = self.run.require_result()
        found = {run.id: run for run in store.list_runs(limit=None, parent=sweep_id, kind="experiment")}
        self._runs = [found[i] for i in self.summary["runs"]]
        self.best = found.get(self.run.best or "")

    def __getitem__(self, i: Any) -> Any:
        return self._runs[i]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)


def sweep(
    model: Any, data: Any, mappings: Mappings, calib: Calibration | None = None,
    progress: ProgressCallback | None = None, *,
    store: Store | None = None, runner: JobRunner | None = None, workers: int | None = None, **settings: Any,
) -> SweepRuns:  # fmt: skip
    """Evaluate many configs of one network from one calibration; each becomes a stored run, the best so far is kept.

    model, data: as in Experiment. mappings: a Grid, named mappings, or a sequence of mappings and presets. calib: taken
    instead of calibrating. progress("configs", done, total) may raise to stop. settings: those of Sweep (backend,
    eliminate, most, seconds, batch_size, …).

    Runs in this process; with `workers` in so many worker processes, with a `runner` or QLAB_DASK on its workers. What
    is computed already, by an earlier sweep or run, is taken from the store: a sweep that was stopped goes on when it
    is called again. A config that cannot be carried out fails alone; if all do, RunFailed says why. Raises
    InvalidConfig, Cancelled, and what loading and calibrating raise.
    """
    from qlab.lab.drive import sweep_here, sweep_on
    from qlab.lab.store import open_store

    wanted = Sweep.of(model, data, mappings, **settings)
    if runner is None and workers is None and not os.environ.get("QLAB_DASK"):
        store = store or open_store()
        return SweepRuns(store, sweep_here(store, wanted, calib, progress))
    if calib is not None:
        raise InvalidConfig("A calibration that is given stays in this process: leave out workers and runner.")
    if runner is not None:
        return SweepRuns(runner.store, sweep_on(runner, wanted, progress))
    from qlab.lab.jobs import JobRunner, Staff

    staff = Staff.of_this_machine()
    if workers is not None:
        staff = replace(staff, workers=workers, threads=max(1, staff.workers * staff.threads // workers))
    store = store or open_store()
    with JobRunner(store, staff=staff) as own:
        return SweepRuns(store, sweep_on(own, wanted, progress))


def _of_grid(table: Any) -> list[dict[str, Any]]:
    known = [name for name in Grid.__dataclass_fields__ if name != "rules"]
    if not isinstance(table, Mapping) or set(table) - set(known):
        raise InvalidConfig(f"grid is a table of choices, any of {', '.join(known)}.")
    choices: dict[str, Any] = {
        # An observer with settings is written as a list of its name and their table.
        key: value if key == "group_size" else tuple(tuple(v) if isinstance(v, list) else v for v in value)
        for key, value in table.items()
    }
    return [{"name": name, "mapping": mapping.to_dict()} for name, mapping in Grid(**choices).configs().items()]


def _names(mappings: list[QConfigMapping | str]) -> list[str]:
    """A preset by its name, others by what tells them apart."""
    own = [m for m in mappings if isinstance(m, QConfigMapping) and m.default is not None]
    short = iter(short_names([m.default for m in own if m.default is not None]) if own else [])
    names: list[str] = []
    for mapping in mappings:
        if isinstance(mapping, str):
            name = mapping
        else:
            name = "float" if mapping.default is None else next(short)
            rules = mapping.rule_count
            more = [f"{rules} rule{'s' if rules > 1 else ''}"] if rules else []
            name = " · ".join([name, *more, *extras(mapping)])
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names
