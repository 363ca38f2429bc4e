"""What is looked at on Training: its settings, and the history and runs that the store has of exactly these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig, QLabError
from qlab.training.settings import Training
from qlab.ui import cache, change, history, jobs, library, state

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.lab.experiment import Experiment
    from qlab.lab.store import Artifact, Run
    from qlab.training.history import History

KIND = "experiment"
TRAINED = "trained model"
SETTINGS, EPOCH, PROBLEM = "training.settings", "training.epoch", "training.problem"
ADDRESS = "training"  # the run that is shown, in the address of the page
WEIGHTS_ORIGIN = "weights.origin"  # where the page Weights keeps which run trained what it shows
LOW_BITS = (
    (4, 4, "4-bit weights and activations"),
    (2, 4, "2-bit weights, 4-bit activations"),
)  # fmt: skip
NO_LOSS = 8  # bits of weights and activations from which quantization costs next to nothing


@dataclass(frozen=True)
class Seen:
    """What the store has of the current network, data, config and settings.

    run: the newest run of exactly these; an open one or a finished one goes first. history: the whole of a finished
    training, or up to the last checkpoint. untrained: a finished run of the same without training; measuring: one that
    goes on.
    """

    run: Run | None
    history: History | None
    untrained: Run | None
    measuring: Run | None = None

    @property
    def going(self) -> bool:
        return self.run is not None and not self.run.ended

    @property
    def reached(self) -> int:
        """Epochs that are over."""
        return 0 if self.history is None else self.history.epochs[-1].epoch

    @property
    def finished(self) -> Run | None:
        """The run, where it has a result."""
        return self.run if self.run is not None and self.run.status == "done" else None


# --- settings ---------------------------------------------------------------------------------------------------------


def begin() -> None:
    """Takes training, tensor and epoch from the address on the first visit: a link, or a page that was loaded again."""
    if EPOCH in st.session_state:
        return
    asked = st.query_params.get("epoch", "")
    set_epoch(int(asked) if asked.isdecimal() else None)
    run_id, tensor = st.query_params.get(ADDRESS), st.query_params.get("tensor")
    opened = run_id is not None and _open(run_id)
    if tensor is not None:
        state.set_tensor(tensor)
    if opened:
        st.rerun()  # the sidebar has been drawn


def show(run_id: str) -> None:
    """Makes this training the one that Training shows when it is opened next; where that cannot be, it says why."""
    set_epoch(None)
    _open(run_id)


def _open(run_id: str) -> bool:
    """Makes network, data, config and settings of a training the current ones. False where that cannot be, with why."""
    from qlab.lab.experiment import Experiment

    run = cache.store().try_run(run_id)
    if run is None or run.kind != KIND or not run.spec.get("training"):
        st.session_state[PROBLEM] = InvalidConfig(f"The link names a training {run_id} that is not in this store.")
        return False
    done = Experiment.from_dict(run.spec)
    models = {ref.source: ref for ref in library.models()}
    data_sets = {ref.source: ref for ref in library.data_sets()}
    data = done.data["path"] if isinstance(done.data, Mapping) else done.data
    if done.model not in models or data not in data_sets:
        st.session_state[PROBLEM] = InvalidConfig(
            f"The training {run_id} is of {run.model} on {run.data}, which are not among the networks and data here."
        )
        return False
    state.set_model(models[done.model])
    if state.data_ref().source != data:
        state.set_data(data_sets[data])
    take_settings(done)
    state.set_mapping(done.resolved_mapping)
    return True


def note_address(run: Run | None) -> None:
    """Keeps the training that is shown in the address, so that a reload or a bookmark finds it again."""
    if run is None:
        st.query_params.pop(ADDRESS, None)
    elif st.query_params.get(ADDRESS) != run.id:
        st.query_params[ADDRESS] = run.id


def take_settings(done: Experiment) -> None:
    """Makes the settings of a training, and of its experiment, the current ones."""
    st.session_state[SETTINGS] = done.training
    state.set_options(state.options().replace(batch_size=done.batch_size, seed=done.seed))


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same."""
    epoch, run = st.session_state.get(EPOCH), newest()
    return {
        "tensor": state.tensor(), "epoch": None if epoch is None else str(epoch),
        ADDRESS: None if run is None else run.id,
    }  # fmt: skip


def settings() -> Training:
    """How the next training is done; the usual way until something was changed."""
    return st.session_state.get(SETTINGS, Training())


def change_settings(**changes: Any) -> None:
    """Raises InvalidConfig."""
    st.session_state[SETTINGS] = settings().replace(**changes)


def epoch(found: History) -> int:
    """The epoch that is looked at: the one chosen, else the result of a finished training, else the newest."""
    chosen, last = st.session_state.get(EPOCH), found.epochs[-1].epoch
    if chosen is None:
        return found.best if found.finished else last
    return min(chosen, last)


def set_epoch(value: int | None) -> None:
    st.session_state[EPOCH] = value


def experiment() -> Experiment:
    """The current network, data and config with a training by these settings. Raises InvalidConfig."""
    return untrained().replace(training=settings())


def untrained() -> Experiment:
    """The same without the training."""
    return state.experiment().replace(name="")


# --- the config -------------------------------------------------------------------------------------------------------


def low_bits(mapping: QConfigMapping, weight: int, activation: int) -> QConfigMapping:
    """The config with static grids of these bits wherever it quantizes; one that quantizes nothing gets them as its
    default. What stays float stays so."""
    low = QConfig(
        weight=QuantSpec(weight, "per_channel_symmetric", observer="mse"),
        activation=QuantSpec(activation, "per_tensor_affine", observer="mse"),
    )
    return mapping.each(lambda _: low) if any(mapping.rules) else mapping.replace(default=low)


def fewest_bits(mapping: QConfigMapping) -> int | None:
    """Of all weights and activations that the config puts on a grid; None where there are none."""
    bits = [spec.bits for rule in mapping.rules if rule for spec in (rule.weight, rule.activation) if spec]
    return min(bits, default=None)


# --- what the store has -----------------------------------------------------------------------------------------------


def look(model: Model) -> Seen:
    """What is known of the current settings; computes nothing."""
    from qlab.lab import trained

    wanted, run = experiment(), newest()
    without = _runs(untrained())
    before = next((r for r in without if r.status == "done"), None)
    going = None if before else next((r for r in without if not r.ended), None)
    if run is not None and run.status == "done":
        return Seen(run, _history(run.id, str(cache.store().home)), before, going)
    data = cache.dataset(state.data_ref())
    return Seen(run, trained.live(cache.store(), model, data, wanted), before, going)


def newest() -> Run | None:
    """The newest run of exactly the current settings; an open one or a finished one goes first."""
    found = _runs(experiment())
    going = (run for run in found if not run.ended)
    done = (run for run in found if run.status == "done")
    return next(going, None) or next(done, None) or next(iter(found), None)


def _runs(wanted: Experiment) -> list[Run]:
    """The runs of exactly this, the newest first."""
    from qlab.lab.tasks import KINDS

    spec_hash = KINDS[KIND].describe(cache.store(), {"experiment": wanted}).spec_hash
    return [run for run in history.everything().runs if run.kind == KIND and run.spec_hash == spec_hash]


@st.cache_resource(max_entries=8, show_spinner="Reading the training")
def _history(run_id: str, _home: str) -> History | None:
    """Of a finished run. Shared: do not change it."""
    from qlab.lab import trained

    return trained.read_history(cache.store(), cache.store().get_run(run_id))


def trained_model(run: Run) -> Artifact:
    """The file of a finished training, for `qlab.load_quantized`. Raises RunFailed."""
    result = cache.store().get_run(run.id).require_result()
    return cache.store().artifact(result["artifacts"][TRAINED])


def expected_seconds(model: Model) -> tuple[float, int] | None:
    """How long these settings will take, and by how many finished trainings of this network on this data with the same
    ranges and batch size; None without any.

    By the slowest of them: one that went on where another had stopped, or ended early, took less for its epochs.
    """
    now, times = settings(), []
    for run in earlier(model):
        how = run.spec["training"]
        if run.seconds is not None and (how["ranges"], how["batch_size"]) == (now.ranges, now.batch_size):
            times.append(run.seconds / how["epochs"])
    return (max(times) * now.epochs, len(times)) if times else None


def earlier(model: Model) -> list[Run]:
    """Finished trainings of this network on this data, the newest first."""
    data = cache.dataset(state.data_ref()).content_hash
    return [
        run
        for run in history.experiments().runs
        if run.spec.get("training") and (run.model_hash, run.data_hash) == (model.content_hash, data)
    ]


# --- presses ----------------------------------------------------------------------------------------------------------


def start() -> None:
    """Starts the training, or goes on with it."""
    _submit(experiment)


def reopen(run: Run) -> None:
    """Makes config and settings of a finished training the current ones, so that it is shown."""
    from qlab.lab.experiment import Experiment

    done = Experiment.from_dict(run.spec)
    take_settings(done)
    set_epoch(None)
    change.to(done.resolved_mapping, "Opened an earlier training")


def measure_untrained() -> None:
    _submit(untrained)


def _submit(what: Any) -> None:
    try:
        jobs.submit(KIND, experiment=what())
    except QLabError as error:
        st.session_state[PROBLEM] = error
