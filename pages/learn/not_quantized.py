"""Lesson 12: five ways in which a Linear stays float, each with its ledger line; and why an outlier is none of them."""

from dataclasses import dataclass

import pandas as pd
import streamlit as st

from qlab.graph.causes import state_of
from qlab.lessons import not_quantized
from qlab.metrics import COMPUTED, percent, three_digits, write
from qlab.plots.lessons.not_quantized import code_counts, strip
from qlab.plots.theme import palette
from qlab.ui import errors, lesson, widgets

EXPLAIN = """
The *ledger* has one line for every operation of a network: quantized or not, the reason, and the rule of the config
that decided. Nothing stays float without a line that says why. Read the line first, then change what it names.
"""
YES_NO = {"yes": "yes, it is quantized", "no": "no, it stays float"}
QUALITY = {"well": "quantized, well", "badly": "quantized, badly", "float": "it stays float"}
TENTH = 20.0  # dB: the error is a tenth of the signal
SCHEMES = {"per_tensor_symmetric": "for the whole weight", "per_channel_symmetric": "for each output channel"}
WHEN = {"every call": "added at every call", "merged": "merged beforehand"}
TORCH = {"bare": "by itself", "inside": "inside a module"}


@dataclass(frozen=True)
class Case:
    """One way. label: of its setting; options, start: of it; about: what is set up."""

    title: str
    label: str
    options: dict[str, str]
    start: str
    about: str
    help: str


CASES = {
    "rule": Case(
        "A rule keeps it float", "The rule names", {key: key for key in not_quantized.RULES}, "fc*",
        "The perceptron outlier_mlp under static int8, with one rule that says: keep these float.",
        "Which layers the rule with None keeps in float.",
    ),
    "name": Case(
        "The name matches nothing", "The rule names", {key: key for key in not_quantized.PATTERNS}, "net.fc2",
        "The same perceptron, float by default. One rule asks for int8, by the name of a layer.",
        "The name, or pattern of names, that int8 is asked for.",
    ),
    "group": Case(
        "Groups do not divide it", "Weights in a group", {str(n): str(n) for n in not_quantized.GROUPS}, "32",
        "conv_digits with 4-bit weights, a scale per group. Each output of its classifier has a row of {row} weights.",
        "How many neighbouring weights share one scale.",
    ),
    "computed": Case(
        "Its weight is made at run time", "The adapter is", WHEN, "every call",
        "A small layer with a low-rank adapter, as fine-tuning makes them: two thin matrices added to its weight.",
        "Whether the weight is a constant or a result of the forward pass.",
    ),
    "torch": Case(
        "PyTorch was handed it alone", "The layer is handed over", TORCH, "bare",
        "Not the lab but torch.ao: a Linear goes through prepare and convert.",
        "Whether convert gets the Linear itself or a module that holds it.",
    ),
}  # fmt: skip


def draw(page: lesson.Lesson) -> None:
    page.header(
        "Why is my Linear not quantized?",
        "Five ways in which a linear layer stays float. Each happens here and now: say what becomes of the layer, read "
        "its line in the ledger, then apply what helps.",
        explain=EXPLAIN,
        terms=("ledger", "weight-only", "per group", "outlier", "SQNR"),
    )
    page.part(five_ways)
    page.yours(
        "diagnose", "ledger", "Ledger", "Every op of your network has a line like these, with buttons for what helps."
    )
    page.part(outliers)
    # Whoever reads the first case does not wait for PyTorch at the last one.
    with st.spinner("Having PyTorch quantize a layer, for the last of the five"):
        not_quantized.bare()
        not_quantized.line("computed", "every call")
        not_quantized.line("computed", "merged")


def five_ways(page: lesson.Lesson) -> None:
    with page.controls():
        key = page.select(
            "case", "What happens", {name: case.title for name, case in CASES.items()}, "rule", width=290,
            help="One of the five ways; each has a network and a config of its own.",
        )  # fmt: skip
        case = CASES[key]
        setting = page.choice(f"{key}_setting", case.label, case.options, case.start, help=case.help)
    page.text(case.about.format(row=not_quantized.row_length("classifier")))
    if key == "torch":
        in_torch(page, setting)
    else:
        in_the_lab(page, key, setting)


def in_the_lab(page: lesson.Lesson, key: str, setting: str) -> None:
    with st.spinner("Reading the network"):
        found = not_quantized.line(key, setting)
    st.code(found.code, language="python", wrap_lines=True)
    picture = st.container()
    name = found.row.layer
    guess = page.predict(f"Is `{name}` quantized under this config?", YES_NO, name=f"{key}_guess")
    with picture:
        page.chart(strip(found.rows, name, widgets.dark(), told=guess.open), "strip")
    if not guess.open:
        return
    guess.told("yes" if found.row.quantized else "no", f"The ledger says of {name}: {found.row.reason}.")
    page.text("**Its line in the ledger**")
    ledger_line(found.row)
    for rule, alike in found.unmatched.items():
        meant = f" The closest name is `{alike[0]}`." if alike else ""
        page.text(f":orange-badge[rule without effect] `{rule}` matches nothing in this network.{meant}")
    if found.nothing_helps:
        page.text(found.nothing_helps)
    if found.remedies:
        what_helps(page, key, found)


def what_helps(page: lesson.Lesson, key: str, found: not_quantized.Line) -> None:
    titles = {"none": "nothing yet"} | {str(i): one.title for i, one in enumerate(found.remedies)}
    picked = page.select(f"{key}_remedy", "Apply", titles, "none", width=330,
                         help="A change of the config that the lab offers for this line.")  # fmt: skip
    if picked != "none":
        remedy = found.remedies[int(picked)]
        page.text(f"{errors.escape(remedy.sentence)} **Its line after that:**")
        ledger_line(remedy.row)


def ledger_line(row: not_quantized.LedgerRow) -> None:
    """One line as the page Ledger has it."""
    state = state_of(row.cause)
    colours = palette(widgets.dark())
    paint = colours.wash("neutral", 0.25) if state == "float" else colours.wash("quantized", 0.55)
    shown = pd.DataFrame(
        {
            "Layer": [row.layer], "Op": [row.op], "State": [state], "Why": [row.reason],
            "Weight": [str(row.weight) if row.weight else "float"], "Rule": [row.rule],
        }
    ).set_index("Layer")  # fmt: skip
    st.table(shown.style.map(lambda _: f"background-color: {paint}", subset=["State"]))


def in_torch(page: lesson.Lesson, setting: str) -> None:
    with st.spinner("Having PyTorch quantize a layer"):
        found = not_quantized.bare()
    alone = found.alone
    after = alone.after if setting == "bare" else found.module
    st.code(alone.code if setting == "bare" else found.code, language="python", wrap_lines=True)
    guess = page.predict("Is the Linear quantized after convert?", YES_NO, name="torch_guess")
    if not guess.open:
        return
    quantized = after != alone.before
    guess.told("yes" if quantized else "no", f"After convert its type is `{after}` (torch {found.version}).")
    row = not_quantized.bare_here()
    page.text(
        "convert replaces the **children** of what it is given. A layer by itself is nobody's child, so it stays what "
        "it was, and no warning says so. The lab works on the graph of operations instead; of a Linear that is the "
        "whole network its ledger says:"
    )
    ledger_line(row)


def outliers(page: lesson.Lesson) -> None:
    page.section("Is an outlier a reason?")
    page.text(
        "One can read that a Linear is not quantized because its weights have outliers, or very large or small values. "
        "The example that goes with it hands a bare Linear to PyTorch, which is the fifth way above. Here one weight "
        "of fc1 and one of fc2 are far larger than all others, and only the chosen layer's weight is put on a grid."
    )
    with page.controls("outlier"):
        layer = page.choice("layer", "Layer", {name: name for name in ("fc1", "fc2", "fc3")}, "fc1",
                            help="fc1 and fc2 have an outlier, fc3 has none.")  # fmt: skip
        bits = page.slider("bits", "Bits", 3, 8, 8, width=200, help="Fewer bits: fewer codes for all weights.")
        scheme = page.choice("scheme", "One scale", SCHEMES, "per_tensor_symmetric",
                             help="A scale for each channel keeps the outlier away from the others.")  # fmt: skip
    found = not_quantized.stretched(layer, bits, scheme)
    page.text(
        f"The largest weight of {layer} is {three_digits(found.largest)}, a typical one {three_digits(found.typical)}: "
        f"**{found.largest / found.typical:,.0f} times** less."
    )
    guess = page.predict(
        f"What becomes of {layer}? Badly means that its output is off by more than a tenth.",
        QUALITY,
        name="outlier_guess",
    )
    if not guess.open:
        return
    truth = "float" if not found.row.quantized else "well" if found.sqnr >= TENTH else "badly"
    guess.told(truth, f"Its line says: {found.row.reason}. The SQNR of its output is {write('sqnr', found.sqnr)}.")
    page.chart(code_counts(found.codes, found.counts, widgets.dark()), "codes")
    widgets.figures(
        [
            ("Ledger", state_of(found.row.cause), None, "What the ledger says of this layer."),
            ("SQNR of its output", write("sqnr", found.sqnr), f"{TENTH:.0f} dB: a tenth off",
             "Against the same layer in float."),
            ("Weights that became 0", percent(found.zeros), None, "Their code is that of zero."),
            (f"Accuracy, {COMPUTED['simulated']}", write("accuracy", found.evaluation.accuracy), found.versus.verdict,
             "Of the whole network with this one layer quantized, against the float network."),
        ]
    )  # fmt: skip
    ledger_line(found.row)
    page.notice(notice(layer, found))


def notice(layer: str, found: not_quantized.Stretched) -> str:
    """Quantized or not, and how well, are two questions."""
    quality = "with little loss" if found.sqnr >= TENTH else "badly"
    return (
        f"{layer} is {state_of(found.row.cause)}, {quality}. Whether a layer is quantized is decided by the config and "
        "the graph; no value of a weight enters into it. How well it is quantized is decided by the values. An outlier "
        f"stretches the grid: here {percent(found.zeros)} of the weights share the code of 0. Ask the ledger for the "
        "first, the SQNR for the second."
    )


lesson.show("not_quantized", draw)
