"""The graph of the current network under the current config: what is open, what is chosen, what its colours say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.metrics import COMPUTED, three_digits, write
from qlab.ui import cache, choose, converted, errors, estimate, prepared, results, say, state, trial, widgets

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.graph.capture import Model
    from qlab.graph.outline import Link, Outline
    from qlab.graph.placement import LedgerRow

CHART, WIDTH, HEIGHT, DETAILS = "graph_chart", 640, 720, 290  # pixels
SEEN = 10  # layers of boxes in that height
GRID, SQNR = "grid", "SQNR"
OPEN, CHOSEN, REVEAL, DRAWN, COLOUR = "graph.open", "graph.chosen", "graph.reveal", "graph.drawn", "graph.colour"
DISTRIBUTIONS, LEDGER = "pages/lab/distributions.py", "pages/diagnose/ledger.py"


@dataclass(frozen=True)
class Noise:
    """SQNR of each op, in dB, and where the figures are from."""

    sqnr: dict[str, float]
    said: str


@dataclass(frozen=True)
class Found:
    """model: as it was loaded. whole: every op; shown: what is on the page, with modules folded."""

    model: Model
    qmodel: QuantizedModel
    key: converted.Key
    whole: Outline
    shown: Outline
    rows: dict[str, LedgerRow]


def found(model: Model) -> Found | None:
    """The graph under the current config; None while the calibration is made, or where the data does not fit."""
    from qlab.graph.outline import folded, outline_of

    mapping, artifact = state.mapping(), None
    if mapping.needs_calibration:
        if not choose.data_fits(model):
            return None
        ready = prepared.require(key="graph")
        if ready is None:
            return None
        artifact = cache.store().artifact(ready.calibration_artifact)
    qmodel, key = converted.under(model, mapping, artifact)
    whole = outline_of(qmodel)
    if st.session_state.pop(REVEAL, False) and (layer := st.session_state.get(CHOSEN)) is not None:
        _bring_up(model, whole, layer)
    rows = {row.layer: row for row in qmodel.ledger}
    return Found(model, qmodel, key, whole, folded(whole, opened(model, whole)), rows)


# --- what is open and chosen ------------------------------------------------------------------------------------------


def _bring_up(model: Model, whole: Outline, layer: str) -> None:
    """Gives this op a box in the part of the picture that is seen first; folds what is above it where that is long."""
    from qlab.graph.outline import folded, path_to
    from qlab.plots.layered import layered

    if layer not in {v.key for v in whole.vertices}:
        return
    path = frozenset(path_to(whole, layer))
    both = opened(model, whole) | path
    shown = folded(whole, both)
    layout = layered([v.key for v in shown.vertices], [(link.source, link.target) for link in shown.links])
    wanted = both if layout.place[layer][1] < SEEN else path
    if wanted != opened(model, whole):
        _set_open(model, wanted)


def begin() -> None:
    """Takes the op from the link on the first visit."""
    if CHOSEN not in st.session_state:
        st.session_state[CHOSEN] = st.query_params.get("layer")
        st.session_state[REVEAL] = True


def reveal(layer: str) -> None:
    """Chooses this op and opens the modules it is in, also before the page is drawn."""
    st.session_state[CHOSEN], st.session_state[REVEAL] = layer, True


def share_params() -> dict[str, str | None]:
    return {"layer": st.session_state.get(CHOSEN)}


def opened(model: Model, whole: Outline) -> frozenset[str]:
    """The modules that stand open; at first so many levels as make a picture that can be read."""
    from qlab.graph.outline import first_opened

    held = st.session_state.get(OPEN, {}).get(model.content_hash)
    return first_opened(whole) if held is None else held


def _set_open(model: Model, paths: frozenset[str] | set[str]) -> None:
    st.session_state[OPEN] = {**st.session_state.get(OPEN, {}), model.content_hash: frozenset(paths)}
    # A chart of its own for other boxes: what the browser says was clicked counts them.
    st.session_state[DRAWN] = st.session_state.get(DRAWN, 0) + 1


def _fold(known: Found, path: str) -> None:
    kept = {one for one in opened(known.model, known.whole) if one != path and not one.startswith(f"{path}.")}
    _set_open(known.model, kept)


def _chart_key() -> str:
    return f"{CHART}_{st.session_state.get(DRAWN, 0)}"


def _clicked(known: Found) -> None:
    for mark in widgets.clicked(_chart_key())[:1]:
        kind, _, name = str(mark).partition(" ")
        box = known.shown.vertex(name) if kind == "box" else None
        if box is not None and box.kind == "block":
            _set_open(known.model, opened(known.model, known.whole) | {box.path})
        else:
            _choose(known, name)


def _choose(known: Found, name: str) -> None:
    st.session_state[CHOSEN] = name
    tensor = tensor_of(known, name)
    if tensor is not None:
        state.set_tensor(tensor)


def tensor_of(known: Found, name: str) -> str | None:
    """What Distributions can show of this op or line: its own tensor, the one at the end of its unit, or its weight."""
    tensors = trial.tensors(known.model)
    row = known.rows.get(name)
    for candidate in (name, row.output if row is not None else None):
        if candidate in tensors.entries:
            return candidate
    mine = tensors.of_layer(name)
    return next((entry.tensor for entry in mine if entry.role == "activation"), mine[0].tensor if mine else None)


# --- controls ---------------------------------------------------------------------------------------------------------


def controls(known: Found) -> None:
    """One row: what the colours mean, an op to go to, all folded or unfolded."""
    layers = [layer for vertex in known.whole.vertices for layer in vertex.layers]
    chosen = st.session_state.get(CHOSEN)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="graph_controls"):
        widgets.kept(
            st.segmented_control, "Colour by", (GRID, SQNR), value=st.session_state.get(COLOUR, GRID),
            store=widgets.into(COLOUR), key="graph_colour", required=True, width="content",
            help="grid shows what lies on a grid and where values are converted; SQNR shows where the noise is.",
        )  # fmt: skip
        widgets.kept(
            st.selectbox, "Go to", layers, value=chosen if chosen in layers else None, store=_go_to(known),
            key="graph_find", index=None, placeholder="an op", width=300,
            help="Chooses an op and opens the modules it is in; where it would stand far down, the others are folded.",
        )  # fmt: skip
        st.button(
            "Fold all", key="graph_fold", on_click=_set_open, args=(known.model, frozenset()),
            disabled=not known.whole.blocks, help="Shows each module of the top level as one box.",
        )  # fmt: skip
        st.button(
            "Unfold all", key="graph_unfold", on_click=_set_open, args=(known.model, frozenset(known.whole.blocks)),
            disabled=not known.whole.blocks, help="Shows every op.",
        )  # fmt: skip


def _go_to(known: Found) -> Callable[[Any], None]:
    def go(layer: str | None) -> None:
        if layer is None:
            st.session_state[CHOSEN] = None
        else:
            _choose(known, layer)
            st.session_state[REVEAL] = True

    return go


# --- the picture ------------------------------------------------------------------------------------------------------


def picture(known: Found) -> None:
    from qlab.plots.graph import graph_figure

    drawn = noise(known) if st.session_state.get(COLOUR, GRID) == SQNR else None
    made = graph_figure(
        known.shown, widgets.dark(), chosen=st.session_state.get(CHOSEN),
        sqnr=None if drawn is None else drawn.sqnr, said="" if drawn is None else drawn.said,
        revision=f"{known.model.content_hash} {_chart_key()}",
    )  # fmt: skip
    # Not in columns: where the window is narrow the details go below the picture.
    with st.container(horizontal=True, gap="medium", vertical_alignment="top", key="graph_bench"):
        with st.container(
            height=min(int(made.layout.height) + 34, HEIGHT), border=True, width=WIDTH, key="graph_frame"
        ):
            widgets.chart(
                made, key=_chart_key(), on_select=lambda: _clicked(known), selection_mode="points",
                alt=f"The network as a graph of {len(known.shown.vertices)} boxes",
            )  # fmt: skip
        with st.container(width=DETAILS, key="graph_details"):
            details(known, drawn)


def noise(known: Found) -> Noise | None:
    """SQNR of the ops: of a finished run of this config, else estimated from the calibration; None without either."""
    from qlab.lab.run import content_key

    experiment = state.experiment()
    data = cache.dataset(state.data_ref())
    for backend in ("simulated", "auto", "integer"):
        key = content_key(known.model, data, experiment.replace(backend=backend))
        for run in cache.store().list_runs(limit=1, content_key=key, status="done", kind="experiment"):
            measured = results.result_of(run).quantized
            if measured.sqnr:
                said = f"measured by run {run.id}, {COMPUTED[measured.backend]}"
                return Noise(_of_ops(known, measured.sqnr), said)
    ready = prepared.require(key="graph_noise")
    if ready is None:
        return None
    guess = estimate.of(known.model, state.mapping(), ready)
    return Noise(_of_ops(known, guess.sqnr), "estimated from the calibration: what each op adds itself")


def _of_ops(known: Found, sqnr: Mapping[str, float]) -> dict[str, float]:
    """Of every op, also of those that are part of a unit or share its grid, and of the inputs."""
    owner = {tensor: layer for layer, tensor in known.qmodel.outputs.items()}
    out = dict(sqnr)
    for row in known.rows.values():
        if row.layer not in out and row.output is not None:
            source = owner.get(row.output, row.output)
            if source in sqnr:
                out[row.layer] = sqnr[source]
    return out


# --- what is chosen ---------------------------------------------------------------------------------------------------


def details(known: Found, drawn: Noise | None) -> None:
    """What is known of the op or line that was clicked, and where to look further."""
    name = st.session_state.get(CHOSEN)
    box = known.whole.vertex(name) if name else None
    if name is None or box is None:
        say.markdown("Click a box or a line to see what it holds; a box with ▸ opens.")
        _counts(known)
        return
    row = known.rows.get(name)
    say.markdown(f"**{errors.escape(name)}**" + (f" ({box.op})" if box.kind == "op" else f", {box.kind}"))
    if row is not None:
        say.markdown(errors.escape(f"{row.reason[:1].upper()}{row.reason[1:]}."))
    facts = _facts(known, name, row, drawn)
    if box.shape:
        facts.insert(0, ("gives", " × ".join(map(str, box.shape))))
    st.table(dict(facts), border="horizontal")
    _lines_of(known, name)
    with st.container(horizontal=True, gap="small"):
        tensor = tensor_of(known, name)
        if tensor is not None and st.button(
            "See its values", key="graph_values", help=f"Opens Distributions at {errors.escape(tensor)}."
        ):
            state.set_tensor(tensor)
            st.switch_page(DISTRIBUTIONS)
        if row is not None and st.button("Why?", key="graph_why", help="Opens the ledger at this op."):
            st.session_state["ledger.layer"] = name
            st.switch_page(LEDGER)
        for path in _paths_open(known, name):
            st.button(
                f"Fold {errors.escape(path)}", key=f"graph_fold_{path}", on_click=_fold, args=(known, path),
                help="Shows this module as one box.",
            )  # fmt: skip


def _paths_open(known: Found, layer: str) -> list[str]:
    from qlab.graph.outline import path_to

    held = opened(known.model, known.whole)
    return [path for path in reversed(path_to(known.whole, layer)) if path in held]


def _counts(known: Found) -> None:
    kinds = {link.conversion for link in known.whole.links if link.conversion}
    words = {"quantize": "put on a grid", "dequantize": "taken off one", "ranged": "ranged at every call"}
    lines = [
        f"{sum(link.conversion == kind for link in known.whole.links)} × {words[kind]}"
        for kind in words
        if kind in kinds
    ]
    say.caption(
        f"{len(known.rows):,} ops, {len(known.whole.links):,} lines. "
        + (f"Conversions: {', '.join(lines)}." if lines else "No value is converted between ops.")
    )


def _facts(known: Found, name: str, row: LedgerRow | None, drawn: Noise | None) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    if row is not None:
        if row.mode:
            out.append(("mode", row.mode.replace("_", "-")))
        out += [(what, str(spec)) for what, spec in (("weight", row.weight), ("activation", row.activation)) if spec]
    grid = known.qmodel.activations.get((row.output if row is not None else None) or name)
    if grid is not None and grid.scale.numel() == 1:
        where = "scale" if row is not None and row.quantized else "scale where it is read"
        out.append((where, three_digits(float(grid.scale))))
        out.append(("zero point", str(int(grid.zero_point))))
    if drawn is not None and name in drawn.sqnr:
        out.append((f"SQNR, {drawn.said.split(':')[0]}", write("sqnr", drawn.sqnr[name])))
    return out


def _lines_of(known: Found, name: str) -> None:
    """Where its values go, and what becomes of them on the way."""
    from qlab.plots.graph import CONVERTS, HOLDS

    def told(link: Link) -> str:
        way = f", {CONVERTS[link.conversion]}" if link.conversion else ""
        return f"- to {errors.escape(link.target)}: {HOLDS[link.carries]}{way}"

    lines = [told(link) for link in known.whole.links if link.source == name]
    if lines:
        say.caption("\n".join(lines))


# --- the table --------------------------------------------------------------------------------------------------------


def table(known: Found) -> None:
    """The quantized graph node by node, as torch.fx prints it, and as text to keep."""
    import pandas as pd

    from qlab.graph.listing import TITLES, as_text, listing

    lines = listing(known.qmodel)
    frame = pd.DataFrame([vars(line) for line in lines]).set_axis(list(TITLES), axis=1)
    say.caption(
        f"{len(lines):,} nodes of the graph that the simulation runs. aq puts an activation on its grid, wq a weight; "
        "xc, wc and bc give the codes of input, weight and bias of a product, ps its scale; dq ranges at every call."
    )
    st.dataframe(
        frame, key="graph_table", hide_index=True, width="stretch", height=HEIGHT, alt="The nodes of the graph"
    )
    st.download_button(
        "Download as text", as_text(lines), file_name=f"{known.model.name}_graph.txt", mime="text/plain",
        key="graph_text", help="The same table as print_tabular of torch.fx would write it.",
    )  # fmt: skip
