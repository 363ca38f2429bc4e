"""The runs of a comparison as rows: accuracy as a dot on a common axis, the paired verdict, cost, and settings."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.plots.theme import Palette, palette
from qlab.ui import compare, errors, run_list, widgets
from qlab.ui.compare import Against, Compared

if TYPE_CHECKING:
    import pandas as pd

    from qlab.lab.compared import Line

TABLE = "compare_table"
HEIGHT = 520
ALWAYS = ("", "Run", "Computed")
USUAL = (
    "Interval", "Accuracy", "Stopped early", "Against", "Verdict", "p", "Size", "Latency", "Bits", "Observer",
)  # fmt: skip
WIDTH, TALL = 146, 29  # of the picture of an interval, in pixels; Streamlit draws it as tall as fits a row


@dataclass(frozen=True)
class Column:
    """One column: what stands in it, and how Streamlit is to show it."""

    value: Callable[[Line, Against], Any]
    config: Any


def draw(shown: Compared) -> None:
    """Baseline, columns, and the table."""
    baseline = shown.baseline
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        widgets.kept(
            st.selectbox,
            "Baseline",
            [compare.FLOAT_ID, *shown.ids],
            value=compare.FLOAT_ID if baseline is None else baseline.id,
            store=compare.hold_against,
            key="compare_baseline",
            format_func=lambda run_id: shown.title(shown.find(run_id)),
            width=330,
            help="Every run is held against this one, sample by sample, to tell a difference from noise.",
        )
        with st.popover("Columns", help="Chooses what the table shows of each run."):
            widgets.kept(
                st.multiselect,
                "Columns of the table",
                [name for name in _columns("", None) if name not in ALWAYS],
                value=chosen_columns(),
                store=_set_columns,
                key="compare_columns",
                format_func=_label,
                help="These stand in the table beside the name of the run and what its figures were computed with.",
            )
    _table(shown)


def chosen_columns() -> list[str]:
    return list(st.session_state.get("compare.columns", USUAL))


def _set_columns(names: list[str]) -> None:
    st.session_state["compare.columns"] = tuple(names)


def _label(name: str) -> str:
    return {"Against": "Difference to the baseline", "Interval": "Accuracy as a dot", "95 %": "95 % interval"}.get(
        name, name
    )


def _table(shown: Compared) -> None:
    baseline = shown.baseline
    title = shown.title(baseline)
    held = {run.id: compare.against(run, baseline, title) for run in shown.runs}
    picked = shown.picked.id
    frame = rows(shown, held)
    names = filled(chosen_columns(), shown)
    chosen = run_list.selection([shown.ids.index(picked)])
    if st.session_state.get(TABLE, run_list.selection([]))["selection"]["rows"] != chosen["selection"]["rows"]:
        st.session_state[TABLE] = chosen
    st.dataframe(
        _grey(frame, held),
        key=TABLE,
        hide_index=True,
        width="stretch",
        height=run_list.height(len(shown.runs), HEIGHT),
        column_order=[*ALWAYS, *names],
        column_config={name: column.config for name, column in _columns(title, shown).items()},
        placeholder="–",
        on_select=lambda: _selected(shown.ids),
        selection_mode="single-row",
        alt="The runs that are compared",
    )
    st.caption(
        "A click on a heading sorts, one on the left edge picks a run. What lies inside the noise is grey: chance "
        "alone would flip that unevenly in more than 5 of 100 cases (McNemar's test on the same samples)."
    )


def filled(names: list[str], shown: Compared) -> list[str]:
    """These columns without those in which nothing stands here, which would only take the place of others.

    Without labels agreement with float takes the place of accuracy.
    """

    def nowhere(field: str) -> bool:
        return all(getattr(line, field) is None for line in shown.lines.values())

    idle = {name for name, field in (("Latency", "latency"), ("Stopped early", "dropped")) if nowhere(field)}
    if nowhere("accuracy"):
        idle |= {"Interval", "Accuracy", "95 %", "Against", "p", "Δ float"}
        names = names if "Agreement" in names else ["Agreement", *names]
    return [name for name in names if name not in idle]


def _selected(ids: list[str]) -> None:
    found = run_list.chosen(TABLE, ids)
    if found:
        compare.pick(found[0])


def rows(shown: Compared, held: Mapping[str, Against]) -> pd.DataFrame:
    """One row for each run, every column."""
    import pandas as pd

    columns = _columns("", shown)
    return pd.DataFrame(
        [{name: column.value(line, held[i]) for name, column in columns.items()} for i, line in shown.lines.items()]
    )


def _grey(frame: pd.DataFrame, held: Mapping[str, Against]) -> Any:
    """The table with what is noise in grey, what is worse in orange and what is better in green."""
    import pandas as pd

    colours = palette(widgets.dark())

    def colour(one: Against) -> str:
        if not one.real:
            return colours.muted
        return colours.gained if one.short == "better" else colours.error

    painted = pd.DataFrame("", index=frame.index, columns=frame.columns)
    said = [f"color: {colour(one)}" for one in held.values()]
    for name in ("Against", "Verdict", "p"):
        painted[name] = said
    return frame.style.apply(lambda _: painted, axis=None)


# --- the columns ------------------------------------------------------------------------------------------------------


def _columns(title: str, shown: Compared | None) -> dict[str, Column]:
    """All of them by name. title: what the baseline is called."""
    c = st.column_config
    dark = widgets.dark()
    picture = interval_pictures(shown, dark) if shown is not None else {}
    picked = shown.picked.id if shown is not None else None
    baseline = shown.baseline.id if shown is not None and shown.baseline is not None else None
    names = {run.id: shown.title(run) for run in shown.runs} if shown is not None else {}

    def number(share: float | None, times: float = 100) -> float | None:
        return None if share is None else share * times

    def mark(line: Line, _: Against) -> str:
        return ("●" if line.id == picked else "") + ("◆" if line.id == baseline else "")

    return {
        "": Column(mark, c.TextColumn("", width=26, help="● is the run that is picked, ◆ the baseline.")),
        "Run": Column(
            lambda line, _: names.get(line.id, line.title),
            c.TextColumn(width=150, help="Its name, or its settings where none was given."),
        ),
        "Computed": Column(
            lambda line, _: line.backend or "",
            c.TextColumn(width=78, help="Accuracy simulated in torch, or of integer kernels of ONNX Runtime."),
        ),
        "Interval": Column(
            lambda line, _: picture.get(line.id),
            c.ImageColumn(
                "Accuracy, 95 %", width=WIDTH + 14,
                help="Accuracy with its 95 % interval, all runs on one axis; the blue line is float.",
            ),
        ),
        "Accuracy": Column(
            lambda line, _: number(line.accuracy),
            c.NumberColumn(width=76, format="%.1f %%", help="Share of right predictions."),
        ),
        "95 %": Column(
            lambda line, _: "" if line.low is None or line.high is None else
            f"{100 * line.low:.1f} … {100 * line.high:.1f}",
            c.TextColumn("95 % interval", width=112, help="Where the true accuracy lies, with 95 % confidence."),
        ),
        "Against": Column(
            lambda _, held: number(held.delta),
            c.NumberColumn(
                "Difference", width=80, format="%+.1f pt",
                help=f"Points of accuracy more or less than {errors.escape(title)}, on samples that both have seen.",
            ),
        ),
        "Verdict": Column(
            lambda _, held: held.short,
            c.TextColumn(width=74, help="Whether that difference is more than chance; noise: it is not."),
        ),
        "p": Column(
            lambda _, held: held.p,
            c.NumberColumn(width=60, format="%.2g", help="How often chance alone would flip this unevenly (McNemar)."),
        ),
        "Δ float": Column(
            lambda line, _: number(line.delta_float),
            c.NumberColumn(width=82, format="%+.1f pt", help="Points of accuracy more or less than float."),
        ),
        "Agreement": Column(
            lambda line, _: number(line.agreement),
            c.NumberColumn(width=92, format="%.1f %%", help="Share of samples on which it says what float says."),
        ),
        "Size": Column(
            lambda line, _: number(line.size, 1e-3),
            c.NumberColumn(width=74, format="%.1f kB", help="Bytes of the quantized model."),
        ),
        "Latency": Column(
            lambda line, _: number(line.latency, 1e3),
            c.NumberColumn(width=82, format="%.3g ms", help="Median time of a call on integer kernels."),
        ),
        "Bits": Column(
            lambda line, _: bits_picture(line, dark),
            c.ImageColumn(
                width=84, help="A block for each bit: above those of a weight, below, open, those of an activation."
            ),
        ),
        "Weight bits": Column(
            lambda line, _: bits(line.weight_bits), c.TextColumn(width=88, help="Bits of a weight code.")
        ),
        "Activation bits": Column(
            lambda line, _: bits(line.activation_bits), c.TextColumn(width=112, help="Bits of an activation code.")
        ),
        "Observer": Column(
            lambda line, _: line.activation_observer,
            c.TextColumn(width=104, help="The rule that ranges the activations."),
        ),
        "Weight observer": Column(
            lambda line, _: line.weight_observer, c.TextColumn(width=114, help="The rule that ranges the weights.")
        ),
        "Weight scheme": Column(
            lambda line, _: line.weight_scheme, c.TextColumn(width=140, help="How the grids of the weights are laid.")
        ),
        "Activation scheme": Column(
            lambda line, _: line.activation_scheme,
            c.TextColumn(width=140, help="How the grids of the activations are laid."),
        ),
        "Mode": Column(
            lambda line, _: line.mode,
            c.TextColumn(width=90, help="Ranges ahead from calibration, at every call, or weights alone."),
        ),
        "Rules": Column(
            lambda line, _: line.rules, c.NumberColumn(width=60, help="Layers and types with settings of their own.")
        ),
        "Samples": Column(
            lambda line, _: line.samples, c.NumberColumn(width=76, format="%d", help="Samples that were evaluated.")
        ),
        "Stopped early": Column(
            lambda line, _: line.dropped or "",
            c.TextColumn(width=260, help="Why not all samples were evaluated."),
        ),
        "Network": Column(lambda line, _: line.model, c.TextColumn(width=120, help="The network it is of.")),
        "Data": Column(lambda line, _: line.data, c.TextColumn(width=120, help="What it was measured on.")),
        "Tags": Column(lambda line, _: list(line.tags), c.ListColumn(width=110, help="Words given to the run.")),
        "Notes": Column(lambda line, _: line.notes, c.TextColumn(width=200, help="What was written about the run.")),
        "When": Column(
            lambda line, _: datetime.datetime.fromtimestamp(line.created),
            c.DatetimeColumn(width=126, format="YYYY-MM-DD HH:mm", help="When the run was started."),
        ),
    }  # fmt: skip


def bits(count: int | None) -> str:
    return "float" if count is None else str(count)


# --- small pictures ---------------------------------------------------------------------------------------------------


def interval_pictures(shown: Compared, dark: bool) -> dict[str, str]:
    """Run -> accuracy as a dot with its interval, as an image address; all runs on one axis, float as a line."""
    lines = {i: line for i, line in shown.lines.items() if line.accuracy is not None}
    ends = [
        end
        for line in lines.values()
        for end in (line.accuracy, line.low, line.high, line.float_accuracy)
        if end is not None
    ]
    if not ends:
        return {}
    low, high = min(ends), max(ends)
    room = max(high - low, 0.005)

    def place(share: float) -> float:
        return 10 + (WIDTH - 20) * (share - low) / room

    return {i: _picture(line, place, palette(dark)) for i, line in lines.items()}


def _picture(line: Line, place: Callable[[float], float], colours: Palette) -> str:
    assert line.accuracy is not None
    middle, x = TALL / 2, place(line.accuracy)
    # Symbols and colours are those of the chart.
    integer = line.backend == "integer"
    colour = colours.neutral if line.dropped else colours.gained if integer else colours.quantized
    parts = []
    if line.float_accuracy is not None:
        parts.append(
            f'<path d="M{place(line.float_accuracy):.1f} 3V{TALL - 3}" stroke="{colours.float}" stroke-width="1.5"/>'
        )
    if line.low is not None and line.high is not None:
        parts.append(
            f'<path d="M{place(line.low):.1f} {middle}H{place(line.high):.1f}" stroke="{colour}" stroke-width="2"/>'
        )
    if integer:
        parts.append(f'<circle cx="{x:.1f}" cy="{middle}" r="6" fill="{colour}"/>')
    else:
        parts.append(f'<path d="M{x - 7:.1f} {middle}l7 -7l7 7l-7 7z" fill="{colour}"/>')
    return _image(WIDTH, parts)


def bits_picture(line: Line, dark: bool) -> str:
    """Blocks for the bits of weights, filled, and under them those of activations, open; a line where it is float."""
    colours = palette(dark)
    parts = []
    for count, y, filled in ((line.weight_bits, 3, True), (line.activation_bits, 16, False)):
        if count is None:
            parts.append(f'<path d="M1 {y + 5}H70" stroke="{colours.float}" stroke-width="2"/>')
            continue
        step = 9 if count <= 8 else 4.5
        paint = f'fill="{colours.quantized}"' if filled else f'stroke="{colours.quantized}"'
        inset = 0 if filled else 0.5
        parts += [
            f'<rect x="{1 + i * step + inset:.1f}" y="{y + inset}" width="{step - 2 - 2 * inset:.1f}" '
            f'height="{10 - 2 * inset}" {paint}/>'
            for i in range(count)
        ]
    return _image(74, parts)


def _image(width: int, parts: list[str]) -> str:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TALL}" viewBox="0 0 {width} {TALL}" '
        f'fill="none">{"".join(parts)}</svg>'
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
