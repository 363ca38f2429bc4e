"""One tensor in float and under the configs of two runs, drawn over each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.config import QuantSpec
from qlab.lab.compared import changes_of
from qlab.ui import cache, compare, converted, distributions, errors, results, say, tensors, trial, widgets
from qlab.ui.compare import Compared

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.lab.store import Run
    from qlab.plots.overlay import Side
    from qlab.plots.study import Ends, Tensor
    from qlab.ui.tensors import Entry


BEFORE = "config alone"


@dataclass(frozen=True)
class View:
    """What a run makes of a tensor. spec: None where it keeps it float; why: then the reason, in words.

    source: hash of what the tensor is read from: the network for a weight, the calibration of the run otherwise.
    network: the float network the run put on grids. ends: the range that its config sets by hand.
    """

    label: str
    spec: QuantSpec | None
    source: str
    why: str = ""
    network: Model | None = None
    ends: Ends | None = None


def draw(shown: Compared, a: Run | None, b: Run) -> None:
    """The box with all tensors of the network, and the chosen one under both configs."""
    st.subheader("What does each make of a tensor?", anchor=False)
    if a is not None and a.model_hash != b.model_hash:
        say.info("The two runs are of different networks, so they have no tensor in common.")
        return
    model = open_model(b)
    entry = _chosen(model)
    both = [run for run in (a, b) if run is not None]
    views = [view(run, _label(shown, run), entry, model) for run in both]
    drawn = [v for v in views if v.spec is not None]
    words = [f"{v.label} keeps it float: {v.why}" for v in views if v.spec is None]
    if entry.fixed:
        words.append(f"the output of {entry.fixed} has a range that is known without data, and a run uses that one")
    if len({v.source for v in drawn}) > 1:
        of = "each has weights of its own, because one of them equalises layers" if entry.role == "weight" else ""
        words.append(f"{of or 'each was calibrated by itself'}; the blue shape is that of the second")
    words += [f"{v.label} sets its range by hand" for v in drawn if v.ends is not None]
    words += [
        f"“{BEFORE}” is what the config makes of the float network, without what was done after that ({changes})"
        for changes in dict.fromkeys(map(changes_of, both))
        if drawn and changes
    ]
    if drawn:
        _picture(entry, drawn)
    if words:
        said = "; ".join(words)
        say.caption(errors.escape(f"{said[:1].upper()}{said[1:]}."))


def _label(shown: Compared, run: Run) -> str:
    """What the run is called in the picture, which is of its config alone."""
    return f"{shown.title(run)}, {BEFORE}" if changes_of(run) else shown.title(run)


def open_model(run: Run) -> Model:
    """The network of a run, which need not be the one that is open."""
    from qlab.lab import sources

    return sources.open_model(run.spec["model"], cache.store())


def _chosen(model: Model) -> Entry:
    known = trial.tensors(model)
    looked_at = st.session_state.get("compare.tensor")
    name = looked_at if looked_at in known.entries else trial.chosen_entry(known).tensor
    widgets.kept(
        st.selectbox,
        "Tensor",
        list(known.entries),
        value=name,
        store=lambda new: st.session_state.__setitem__("compare.tensor", new),
        key="compare_tensor",
        width=330,
        help="Shows where the values of this weight or activation lie, and what range each config gives it.",
    )
    return known.entries[name]


def view(run: Run, label: str, entry: Entry, model: Model) -> View:
    """What the config of a run does to a tensor."""
    from qlab.graph.equalize import network_of

    mapping = compare.mapping_of(run)
    network, ends = network_of(model, mapping), mapping.ranges.get(entry.tensor)
    config, spec = tensors.config_of(mapping, entry), tensors.configured(mapping, entry)
    if entry.role == "weight":
        row = next((row for row in results.result_of(run).ledger if row["layer"] == entry.owner), None)
        if spec is not None and row is not None and not row["weight"]:
            return View(label, None, network.content_hash, str(row["reason"]))
        return View(label, spec, network.content_hash, "its config quantizes no weight here", network, ends)
    found = calibration_of(run)
    if spec is not None and config is not None and config.mode == "dynamic":
        return View(label, None, "", "its range is taken anew at every call")
    if spec is None or found is None:
        return View(label, None, "", "its config quantizes no activation here")
    return View(label, spec, found, network=network, ends=ends)


def calibration_of(run: Run) -> str | None:
    """Hash of the calibration a run took its ranges from; None for one that needed none."""
    return cache.store().get_run(run.id).require_result()["artifacts"].get("calibration")


def _picture(entry: Entry, drawn: list[View]) -> None:
    from qlab.plots.overlay import overlay

    distributions.one_thread()
    key = "/".join(
        f"{v.source}:{v.label}:{distributions.spec_key(v.spec)}:{v.ends}" for v in drawn if v.spec is not None
    )
    window, bins, sides = _worked_out(f"{entry.tensor}/{key}", entry, drawn)
    widgets.chart(
        overlay(window, bins, sides, widgets.dark(), unit=f"value of {entry.tensor}"),
        key="compare_overlay",
        alt=f"Values of {entry.tensor} in float and under {len(sides)} configs",
    )


@st.cache_resource(max_entries=32, show_spinner="Working out the ranges")
def _worked_out(key: str, _entry: Entry, _drawn: list[View]) -> tuple[Any, Any, list[Side]]:
    from qlab.plots.overlay import side, window_of
    from qlab.plots.study import values_of

    axis = _entry.axis or 0
    held = [_tensor(_entry, v) for v in _drawn]
    specs = [v.spec for v in _drawn if v.spec is not None]
    window = window_of(held[-1], specs, axis)
    sides = [side(v.label, x, spec, window, axis, v.ends) for v, x, spec in zip(_drawn, held, specs, strict=True)]
    return window, values_of(held[-1], axis).bins(window), sides


def _tensor(entry: Entry, seen: View) -> Tensor:
    if entry.role == "weight":
        assert seen.network is not None
        return trial.tensors(seen.network).weights[entry.tensor]
    return converted.calibration(seen.source)[entry.tensor]
