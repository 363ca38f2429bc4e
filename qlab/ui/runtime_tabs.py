"""The picture of the Runtime page and its tabs: everything a report holds, drawn or as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.metrics import duration_range, metric, percent, whole, write
from qlab.ui import errors, runtime, say, widgets

if TYPE_CHECKING:
    from qlab.runtime.report import RuntimeReport

MANY_OPS = 40  # from which layers are shown first
OPS, LAYERS = "ops", "layers"
INTEGER_GRAPH, FLOAT_GRAPH = "quantized", "float"
PICTURE_HEIGHT = 460


def blocked(report: RuntimeReport) -> None:
    """Why nothing ran."""
    st.subheader("This network does not run in ONNX Runtime under this config", anchor=False)
    errors.failure(report.blocked or "", report.detail)
    say.markdown(
        "The other pages work all the same: they simulate. A static config, or one that leaves the layer in float, "
        "often has an ONNX form."
    )
    st.page_link("pages/lab/experiment.py", label="Change the config on Experiment")


def picture(report: RuntimeReport) -> None:
    """The executed graph in order of execution, a bar for each op or layer."""
    from qlab.plots.runtime import op_times

    assert report.times is not None
    ran = runtime.shown(report).ran
    with st.container(horizontal=True, gap="small", key="runtime_picture_controls"):
        graph = st.segmented_control(
            "Graph", (INTEGER_GRAPH, FLOAT_GRAPH), default=INTEGER_GRAPH, key="runtime_graph", width="content",
            help="Shows the graph of the quantized network or, beside it, that of the float one.",
        )  # fmt: skip
        rows = st.segmented_control(
            "Rows", (OPS, LAYERS), default=LAYERS if len(ran.ops) > MANY_OPS else OPS, key="runtime_rows",
            width="content", help="Draws a bar for every op, or one for all ops of a layer.",
        )  # fmt: skip
    shown = report.times.reference if graph == FLOAT_GRAPH else ran
    made = op_times(shown, widgets.dark(), by_layer=rows == LAYERS)
    say.caption(
        f"{len(shown.ops)} ops in order of execution, {write('latency', shown.seconds)} together under the profiler; "
        f"medians of {shown.runs} calls with {report.batch} sample{'s' if report.batch > 1 else ''}."
    )
    with st.container(height=PICTURE_HEIGHT if (made.layout.height or 0) > PICTURE_HEIGHT else "content", border=False):
        widgets.chart(made, key="runtime_picture")


def _reasons(report: RuntimeReport, *, floats: bool = False) -> dict[str, str]:
    """Layer -> what the ledger says; floats: of those that stay float alone."""
    return {p.layer: p.reason for p in report.plan if not (floats and p.quantized)}


def ops(report: RuntimeReport) -> None:
    """Every op of the executed graph, with what the config said about its layer."""
    from qlab.plots.runtime import WORDS

    ran = runtime.shown(report).ran
    reasons, total = _reasons(report), ran.seconds or 1.0
    st.dataframe(
        {
            "Layer": [o.layer for o in ran.ops],
            "Op": [o.op for o in ran.ops],
            "Kind": [WORDS[o.kind] for o in ran.ops],
            "Time": [o.seconds * 1e6 for o in ran.ops],
            "Share": [o.seconds / total * 100 for o in ran.ops],
            "Reads → writes": [f"{_types(o.reads)} → {_types(o.writes)}" for o in ran.ops],
            "Output": [" × ".join(map(str, o.shape)) for o in ran.ops],
            "What the config said": [reasons.get(o.layer, "") for o in ran.ops],
        },
        column_config={
            "Time": st.column_config.NumberColumn("Time (µs)", format="%.1f"),
            "Share": st.column_config.NumberColumn("Share (%)", format="%.1f"),
        },
        hide_index=True,
        key="runtime_ops",
    )


def _types(kinds: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(kinds))


def crossings(report: RuntimeReport) -> None:
    """Each conversion with its cost, where it lies and who asks for it."""
    from qlab.runtime.boundaries import boundaries

    ran = runtime.shown(report).ran
    found = boundaries(ran, report.inputs, _reasons(report, floats=True))
    inside = [o for o in ran.ops if o.kind == "integer" and o.reads[:1] == ("float",) == o.writes[:1]]
    if inside:
        does = "s take float and give" if len(inside) > 1 else " takes float and gives"
        say.markdown(
            f"{len(inside)} integer op{does} float: {', '.join(dict.fromkeys(o.op for o in inside))}. Inside, "
            "integers are multiplied; the conversions are part of that op's time and stand in no row of their own."
        )
    if not found:
        say.info("No op of the executed graph does nothing but convert.")
        return
    say.markdown(
        f"Conversions: {len(found)}. Together they take {write('latency', sum(b.op.seconds for b in found))} of a "
        f"call, {percent(ran.share('convert'))} of its time. A float op between integer ops costs two of them."
    )
    st.dataframe(
        {
            "Conversion": [f"{b.op.reads[0]} → {b.op.writes[0]}" for b in found],
            "Time": [b.op.seconds * 1e6 for b in found],
            "From": [b.before.layer if b.before else b.op.inputs[0].split("/")[0] for b in found],
            "To": [", ".join(dict.fromkeys(o.layer for o in b.after)) or "output" for b in found],
            "Because": [b.cause for b in found],
        },
        column_config={"Time": st.column_config.NumberColumn("Time (µs)", format="%.1f")},
        hide_index=True,
        key="runtime_boundaries",
    )


def compared(report: RuntimeReport) -> None:
    """Integer kernels beside the simulation: codes of every tensor, and the predictions."""
    from qlab.plots.runtime import differing_codes
    from qlab.runtime.report import INTEGER

    assert report.numbers is not None
    _, parity, name = runtime.shown(report)
    opened = "" if name == INTEGER else " with the runtime's defaults"
    first = parity.first
    if not parity.tensors:
        say.markdown(
            f"No tensor lies on a grid known beforehand under this config, so there are no codes to compare{opened}. "
            f"The outputs differ by {runtime.difference(parity)} at most."
        )
    elif first is None:
        say.markdown(f"Every code of every tensor is the same on {parity.samples} samples{opened}.")
    else:
        say.markdown(
            f"The first difference{opened} is made in **{errors.escape(first.tensor)}**: {whole(first.differing)} of "
            f"{whole(first.count)} codes on {parity.samples} samples, by {write('steps', first.largest)} at most. What "
            "a layer makes of equal input is shown apart from what reaches it from before."
        )
    if parity.tensors:
        widgets.chart(differing_codes(parity, widgets.dark()), key="runtime_codes")
    _predictions(report)


def _predictions(report: RuntimeReport) -> None:
    """Float, simulated and integer on the same evaluation data; the session is opened as simulated."""
    assert report.numbers is not None
    of = report.numbers.accuracies
    rows = [
        ("float", of.reference, None),
        ("simulated", of.simulated, of.simulated_to_float),
        ("integer", of.integer, of.integer_to_float),
    ]
    st.dataframe(
        {
            "Computed by": ["float in torch", "simulation in torch", "integer kernels, opened as simulated"],
            "Accuracy": [write("accuracy", e.accuracy) for _, e, _ in rows],
            "95 % interval": [
                metric("accuracy").interval(*e.accuracy_interval) if e.accuracy_interval else "–" for _, e, _ in rows
            ],
            "Against float": ["" if c is None else c.verdict for _, _, c in rows],
        },
        hide_index=True,
        key="runtime_accuracy",
    )
    apart = of.integer_to_simulated
    say.markdown(
        f"Integer and simulated name another class for {whole(apart.changed)} of {whole(apart.n)} predictions"
        + (f"; {apart.lost} of them are right in the simulation alone, {apart.gained} on integers alone."
           if apart.p is not None and apart.changed else ".")
    )  # fmt: skip


def room(report: RuntimeReport) -> None:
    """How full the accumulators are."""
    from qlab.plots.headroom import headroom_bars

    assert report.numbers is not None
    rows = report.numbers.headroom
    if not rows:
        say.info(
            "No layer adds products of integers on known grids under this config, so there is no accumulator to fill. "
            "A static config such as x86 has them."
        )
        return
    cut = [r for r in rows if r.pairs is not None and r.pairs.saturated > 0]
    saturates = report.machine.cpu.saturates_pairs
    where = {True: "This CPU does so.", False: "This CPU does not.", None: "Whether this CPU does so is not known."}
    say.markdown(
        "Left: the largest sum of products each layer had, as a share of 32 bits. Right: the largest sum of two "
        f"products, as a share of 16 bits, where x86 without VNNI cuts off. {where[saturates]} "
        + (
            f"In {len(cut)} of {len(rows)} layers pairs saturate on {rows[0].samples} samples; keep weights to 7 bits "
            "(preset x86_avx2), or open the session as simulated."
            if cut
            else f"No pair saturated on {rows[0].samples} samples."
        )
    )
    widgets.chart(headroom_bars(rows, widgets.dark()), key="runtime_room")


def latency(report: RuntimeReport) -> None:
    """Turns of each network, and what stands in the way of speed."""
    from qlab.plots.runtime import latencies
    from qlab.runtime.report import FLOAT, INTEGER, TORCH
    from qlab.runtime.why import speed, why_not_faster

    assert report.times is not None
    ran, _, name = runtime.shown(report)
    word = runtime.kind_of(ran)
    timing = report.times.timing
    found = speed(timing, name)
    why = why_not_faster(report, name)
    say.markdown(
        f"With batch {timing.batch} on {report.threads} thread{'s' if report.threads > 1 else ''} the {word} network "
        f"is **{found.verdict}** in ONNX Runtime." + (" What stands in its way:" if why else "")
    )
    if why:
        say.markdown("\n".join(f"- {errors.escape(reason)}" for reason in why))
    widgets.chart(latencies(report.times.timings, report.times.torch, widgets.dark()), key="runtime_latencies")
    both = zip(report.times.timings, report.times.torch, strict=True)
    rows = [row for t, own in both for row in (*((t, name) for name in t.seconds), (own, TORCH))]
    taken = [t.latency(name) for t, name in rows]
    st.dataframe(
        {
            "Network": [name.replace(INTEGER, word) for _, name in rows],
            "Batch": [t.batch for t, _ in rows],
            "Median": [write("latency", x.median) for x in taken],
            "Quartiles": [duration_range(x.low, x.high) for x in taken],
            "Float time over this": ["" if n == FLOAT else write("ratio", t.ratio(FLOAT, n)[1]) for t, n in rows],
            "Turns": [x.runs for x in taken],
        },
        hide_index=True,
        key="runtime_turns",
    )
    say.caption("The networks take turns, each with a moment of untimed calls before, so that drift meets all alike.")


def size(report: RuntimeReport) -> None:
    """Where the bytes of the file go."""
    from qlab.export.size import PARTS
    from qlab.plots.size import size_bars

    assert report.numbers is not None
    found = report.numbers.size
    say.markdown(
        f"The ONNX file takes {write('size', found.total)}, {percent(found.ratio)} of the float one"
        + (f"; {write('size', found.waste)} of it are bits of containers that no code uses." if found.waste else ".")
    )
    widgets.chart(size_bars(found, widgets.dark()), key="runtime_size")
    layers = {name: own for name, own in found.layers.items() if set(own) - {"graph"}}
    parts = [part for part in PARTS if part != "graph" and any(own.get(part) for own in layers.values())]
    st.dataframe(
        {"Layer": list(layers)}
        | {
            f"{part.replace('_', ' ').capitalize()} (B)": [own.get(part, 0) for own in layers.values()]
            for part in parts
        },
        hide_index=True,
        key="runtime_layers_size",
    )


def machine(report: RuntimeReport) -> None:
    """What it was measured on, and how the session was opened."""
    cpu = report.machine.cpu
    say.markdown("**Entries of the session that results depend on here**")
    if report.entries:
        say.markdown("\n".join(f"- `{name}`: {errors.escape(why)}" for name, why in report.entries.items()))
    else:
        say.markdown("None: the runtime's defaults already compute what was simulated.")
    name = errors.escape(cpu.name or "unknown processor")
    say.markdown(f"**{name}**, {cpu.architecture}, {report.machine.cores} logical cores")
    known = {True: "yes", False: "no", None: "unknown"}
    has = {
        "AVX2": (cpu.avx2, "256-bit integer arithmetic"),
        "AVX-512": (cpu.avx512, "the same on 512 bits"),
        "VNNI": (cpu.vnni, "adds four 8-bit products in 32 bits at once"),
        "AMX int8": (cpu.amx_int8, "multiplies tiles of 8-bit matrices"),
        "Arm dot product": (cpu.dotprod, "adds four 8-bit products in 32 bits at once"),
        "Arm i8mm": (cpu.i8mm, "multiplies small 8-bit matrices"),
        "Pairs saturate": (cpu.saturates_pairs, "pairs of 8-bit products pass through 16 bits"),
    }
    table = {
        "Feature": list(has),
        "Here": [known[value] for value, _ in has.values()],
        "What it does": [text for _, text in has.values()],
    }
    st.table(table, hide_index=True)
    say.markdown(f"**Versions** {' · '.join(f'{name} {version}' for name, version in report.machine.versions.items())}")
