"""Lesson 15: claims one hears about quantization, each tested now, with a verdict that the numbers choose."""

import streamlit as st

from qlab.lessons.myths import CLAIMS, VERDICTS, Claim, Outcome
from qlab.plots.lessons.myths import claim_bars
from qlab.ui import curriculum, lesson, widgets

EXPLAIN = """
**A verdict is about this test.** *True here* means: in this test, on this machine, the claim held. One counterexample
is enough for *always*; nothing that is measured here proves a claim for all networks.

**Chance.** Two accuracies are held against each other prediction by prediction. What chance alone could have done
counts as no difference.
"""
FOUND = "learn.myths.found"  # what was tested in this session: claim -> its line of the table
# Where the same is seen on one's own model: claim -> section, page, its title, what is there.
OWN = {
    "affine": (
        "inspect",
        "weights",
        "Weights",
        "Codes, scale and zero point of each weight, and what each code means.",
    ),
    "arithmetic": ("inspect", "runtime", "Runtime", "What really runs on integers, op by op."),
    "state_dict": ("inspect", "weights", "Weights", "A number written by hand, and where it is found again."),
    "dynamic": ("diagnose", "ledger", "Ledger", "Which ops a dynamic config quantizes, and why not the others."),
    "outlier": ("diagnose", "ledger", "Ledger", "Why each layer is quantized or not."),
    "order": ("inspect", "steps", "One number, step by step", "How one output element is rounded, in integers."),
    "small": ("lab", "distributions", "Distributions", "How many weights fall on which code."),
    "bits": ("lab", "sweep", "Sweep", "Accuracy over bits, for all configs at once."),
    "observer": ("lab", "distributions", "Distributions", "All observers on each tensor."),
    "faster": ("inspect", "runtime", "Runtime", "Float and integers timed side by side."),
    "fusing": ("diagnose", "graph", "Graph", "What is one unit in your network."),
    "training": ("lab", "training", "Training (QAT)", "Training on from the current config."),
}


def draw(page: lesson.Lesson) -> None:
    page.header(
        "Is that true?",
        "Twelve claims about quantization, as one reads and hears them. Choose one, say what you think, and see what "
        "comes out when it is tried on a sample network.",
        explain=EXPLAIN,
        terms=("zero point", "observer", "dynamic", "integer kernel", "SQNR", "simulated", "paired comparison"),
    )
    with page.controls():
        key = page.select(
            "claim", "Claim", {key: claim.title for key, claim in CLAIMS.items()}, next(iter(CLAIMS)), width=420,
            help="Each claim has a test of its own.",
        )  # fmt: skip
        claim, option = CLAIMS[key], ""
        if claim.control is not None:
            control = claim.control
            option = page.choice(f"of_{key}", control.label, control.options, control.default, help=control.help)
    with st.container(border=True, key=page.key("quote")):
        page.text(f"### “{claim.quote}”")
        page.text(f"*{claim.source.capitalize()}.* **The test.** {claim.test}")
    guess = page.predict("What will come out?", VERDICTS, name=f"guess_{key}")
    if guess.open:
        with st.spinner(claim.waiting):
            found = claim.outcome(option)
        guess.told(found.verdict, found.because)
        widgets.figures(list(found.figures))
        page.chart(claim_bars(found.bars, widgets.dark()), f"test_{key}")
        page.notice(found.notice)
        remember(key, claim, option, guess.said, found)
        page.text("**More of it** is in these lessons:")
        with page.controls("lessons"):
            for slug in claim.lessons:
                st.page_link(curriculum.page(slug), label=f"{curriculum.number(slug)} · {curriculum.LESSONS[slug]}")
    so_far(page)
    page.yours(*OWN[key])


def remember(key: str, claim: Claim, option: str, said: str | None, found: Outcome) -> None:
    """Keeps the line of the table for this session."""
    varied = "" if claim.control is None else f" ({claim.control.label}: {claim.control.options[option]})"
    st.session_state.setdefault(FOUND, {})[key] = {
        "Claim": claim.title + varied,
        "You said": "–" if said is None else VERDICTS[said],
        "Measured": VERDICTS[found.verdict],
        "What came out": found.because,
    }


def so_far(page: lesson.Lesson) -> None:
    """One line for each claim tested in this session."""
    page.section("Tested so far")
    known = st.session_state.get(FOUND, {})
    if not known:
        st.caption("Nothing yet: each claim you test adds a line here.")
        return
    right = sum(line["You said"] == line["Measured"] for line in known.values())
    guessed = sum(line["You said"] != "–" for line in known.values())
    page.text(f"{len(known)} of {len(CLAIMS)} claims tested, {right} of {guessed} guesses right.")
    # Not a grid: its cells cut what does not fit, and these are sentences.
    head, *lines = list(next(iter(known.values()))), *(list(line.values()) for line in known.values())
    page.text("\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)))


lesson.show("myths", draw)
