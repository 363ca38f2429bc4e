"""Lesson 7: BatchNorm folded into the weights, and ReLU fused with the convolution."""

import streamlit as st

from qlab.lessons import folding
from qlab.metrics import byte_size, percent, three_digits, write
from qlab.plots.lessons.folding import channels, ways
from qlab.samples import sample_card
from qlab.ui import cache, lesson, say, state, widgets

EXPLAIN = """
At inference a batch norm only multiplies each channel by a constant and adds another. Both can be worked into the
weights and bias of the convolution before it: **w′ = w · g / √(variance + ε)**. This is done once, when a network is
loaded, so the lab quantizes the folded weights.

A ReLU is fused when the routine that computes the convolution also cuts at zero, before anything is rounded or written.
"""
SPREADS = {"grows": "they move apart", "stays": "it stays about the same", "shrinks": "they move together"}
COSTS = {"little": "less than 1 dB", "bit": "1 to 6 dB, up to a bit", "more": "more than 6 dB, over a bit"}
LITTLE, BIT = 1.0, 6.02  # dB


def draw(page: lesson.Lesson) -> None:
    page.header(
        "What do folding and fusing do to a network?",
        "Convolution, BatchNorm and ReLU are three layers in the file and one when they run. See what folding does to "
        "the weights, and what it saves to round once instead of three times.",
        explain=EXPLAIN,
        terms=("batch norm", "folding", "fusing", "per tensor", "per channel", "SQNR"),
    )
    page.part(folded)
    page.part(fused)
    page.yours(
        "lab", "distributions", "Distributions",
        "The channels of a folded layer, if it has one: choose a per-channel scheme there and compare.",
        before=look_at_folded,
    )  # fmt: skip


def unit(page: lesson.Lesson, prefix: str = "") -> tuple[str, str]:
    """Controls for a network and one of its convolutions. prefix: of the settings' names."""
    network = page.select(
        f"{prefix}network", "Network", folding.NETWORKS, "conv_digits", help="Shows this sample network.", width=220
    )
    units = {layer: layer for layer in folding.units(network)}
    layer = page.select(
        f"{prefix}layer", "Convolution", units, next(iter(units)), width=200,
        help="Each of these has a BatchNorm and a ReLU behind it.",
    )  # fmt: skip
    return network, layer


def folded(page: lesson.Lesson) -> None:
    with page.controls():
        network, layer = unit(page)
        bits = page.slider("bits", "Bits of the weights", 3, 8, 8, help="Fewer bits: fewer codes for all channels.")
    with st.spinner("Reading the network as it is in its file, and folding it"):
        found = folding.folded(network, layer, bits)
    before, after = found.before, found.after
    page.text(
        f"Below are the {len(found.factor)} channels of `{layer}` as they are in the file. They share one grid, laid "
        f"to the largest weight of all: a channel of small weights reaches only a few of its {before.most} codes."
    )
    picture = st.empty()
    guess = page.predict(
        "Folding multiplies the weights of each channel by a factor that its BatchNorm has learned. What happens to "
        "the distance between the widest and the narrowest channel?", SPREADS,
    )  # fmt: skip
    with picture:
        page.chart(channels(found, guess.open, widgets.dark()), "channels")
    if planted := sample_card(network)["planted"]:
        say.caption(f"About this network: {planted}")
    if not guess.open:
        return
    guess.told(
        found.spread,
        f"The widest channel reaches {three_digits(before.spread)} times as far as the narrowest before folding, "
        f"{three_digits(after.spread)} times after it.",
    )
    same = folding.outputs(network)
    widgets.figures(
        [
            ("Widest over narrowest", f"{three_digits(after.spread)} ×",
             f"before folding {three_digits(before.spread)} ×",
             "Largest weight of the channel that reaches furthest, over that of the channel that reaches least."),
            ("Codes of the narrowest", three_digits(after.codes.min()),
             f"before folding {three_digits(before.codes.min())} of {before.most}",
             "How many codes of the shared grid its largest weight reaches. Below a half, all its weights become 0."),
            ("Worst channel, per tensor", write("sqnr", after.shared), f"before folding {write('sqnr', before.shared)}",
             "SQNR of the weights of the channel that suffers most from a grid that all share."),
            ("Worst channel, per channel", write("sqnr", after.own), f"before folding {write('sqnr', before.own)}",
             "The same where every channel has a scale of its own."),
            ("Outputs moved by", three_digits(same.folded), f"float32 rounds by {three_digits(same.rounding)}",
             f"Largest difference of an output of the network before and after folding, on {same.samples} samples; "
             "beside it what the network before folding differs from itself in float64."),
        ]
    )  # fmt: skip
    page.notice(notice(found, same))


def notice(found: folding.Folded, same: folding.Outputs) -> str:
    before, after = found.before, found.after
    lost = before.shared - after.shared
    text = (
        f"The factors run from {three_digits(found.factor.min())} to {three_digits(found.factor.max())}. "
        + ("Folding carries that spread into the weights. " if found.spread == "grows" else "")
        + f"On one grid for all channels the worst of them {'loses' if lost > 0 else 'gains'} {abs(lost):.1f} dB by "
        f"folding; with a scale for each channel it changes by {abs(after.own - before.own):.1f} dB, because a factor "
        "goes into its scale. "
    )
    return text + (
        f"The outputs stay the same: they differ by {three_digits(same.folded)} at most, where the largest is "
        f"{three_digits(same.largest)} and float32 itself rounds by {three_digits(same.rounding)}."
    )


def fused(page: lesson.Lesson) -> None:
    page.section("What does it save to fuse?")
    with page.controls("fusing"):
        network, layer = unit(page, "fused_")
        bits = page.slider("activation_bits", "Bits of the activations", 3, 8, 8, help="Of every grid on the way.")
    page.text(
        f"The values of `{layer}` pass through BatchNorm and ReLU. Run one by one on integers, each of the three has "
        "to put its result on a grid. Fused, only the last one does."
    )
    guess = page.predict(
        "The values are rounded after the convolution as well as after the ReLU, each time on a grid of its own. What "
        "does the additional rounding cost?", COSTS, name="fused_guess",
    )  # fmt: skip
    if not guess.open:
        return
    found = folding.rounded(network, layer, bits)
    guess.told(
        "little" if found.lost < LITTLE else "bit" if found.lost <= BIT else "more",
        f"{found.lost:.1f} dB, simulated. The grid in between also has to cover the negative values, which the ReLU "
        "then throws away; and what it rounds is rounded again.",
    )
    page.chart(ways(found.sqnr, widgets.dark()), "ways")
    with st.spinner("Writing the network for ONNX Runtime, to see which kernels remain"):
        ran = folding.kernels(network, layer)
    rows = {
        "In the file, op by op": ran.in_file, "ONNX Runtime, float": ran.in_float,
        "ONNX Runtime, integers (x86)": ran.on_integers,
    }  # fmt: skip
    lines = [
        f"| {name} | {', '.join(f'`{op}`' for op in passes.ops)} | {len(passes.ops)} | {byte_size(passes.written)} "
        f"| {all_ops} |"
        for (name, passes), all_ops in zip(rows.items(), ran.network, strict=True)
    ]
    head = f"| | Ops of `{layer}` | Passes | Written for one sample | Ops of the whole network |\n|---|---|---|---|---|"
    st.markdown("\n".join([head, *lines]))
    say.caption("Read from the graph that ONNX Runtime executed; ops that only move values are not counted.")
    share = ran.on_integers.written / ran.in_file.written
    page.notice(
        f"{len(ran.in_file.ops)} passes over the values become {len(ran.on_integers.ops)} on "
        f"integers, and what is written falls to {percent(share)}. Rounding once, at the end, keeps "
        f"{found.lost:.1f} dB that rounding behind the convolution would lose, and "
        f"{found.sqnr[folding.ONCE] - found.sqnr[folding.EACH]:.1f} dB against rounding after each of the three.",
        name="second_notice",
    )


def look_at_folded() -> None:
    """The weights of the first layer into which a BatchNorm was folded, where the network has one."""
    lines = cache.model(state.model_ref()).folded
    if lines:
        state.set_tensor(f"{lines[0].split(' into ')[1]}.weight")


lesson.show("folding", draw)
