"""Lesson 4: one scale for a tensor, a channel or a group, on a weight and on a depthwise network."""

import math

import streamlit as st

from qlab.lessons import granularity
from qlab.lessons.samples import sample
from qlab.metrics import COMPUTED, byte_size, metric, write
from qlab.plots.accuracy import Dot, accuracy_dots
from qlab.plots.channels import Channels, channel_figure
from qlab.plots.lessons.granularity import by_channel, by_factor
from qlab.ui import cache, lesson, state, trial, widgets

EXPLAIN = """
Each scale is a number of its own, stored beside the codes. **Per tensor** there is one, and the largest value of all
decides it. **Per channel** every output channel of a weight has one. **Per group** every stretch of weights inside a
channel has one: the most scales, and the finest steps.
"""
LOST = {"little": "less than one bit", "some": "one to three bits", "much": "more than three bits"}
LEFT = {"same": "no loss beyond chance", "points": "up to 20 points less", "ruin": "more than 20 points less"}
VIEWS = {"factors": "The others, by factor", "channels": "Each channel"}
BIT = 20 * math.log10(2)


def draw(page: lesson.Lesson) -> None:
    page.header(
        "How many values should share a scale?",
        "Values that share a scale share its steps, and the largest of them says how wide these are. Folding a batch "
        "norm multiplies each channel of a weight by a constant of its own. Do the same here: scale one channel up.",
        explain=EXPLAIN,
        terms=("scale", "per tensor", "per channel", "per group", "axis", "SQNR"),
    )
    page.part(experiment)
    page.part(network)
    page.yours(
        "lab", "distributions", "Distributions",
        "The weight whose channels differ most: open the tab Channels there to see which of them suffer.",
        before=most_uneven,
    )  # fmt: skip
    page.yours(
        "lab", "experiment", "Experiment",
        "Your accuracy with one scale for each weight tensor. Run it, change the scheme to per channel, run again.",
        mapping=granularity.network_mapping("tensor", 8),
    )  # fmt: skip


def experiment(page: lesson.Lesson) -> None:
    with page.controls():
        factor = page.scale(
            "factor", "Factor", granularity.FACTORS, 16, width=190, format_func=lambda n: f"× {n}",
            help="Multiplies the chosen output channel of a real weight; all others stay as they are.",
        )  # fmt: skip
        channel = page.slider(
            "channel", "Channel", 0, granularity.channels() - 1, 3, width=170, help="The channel that is scaled."
        )
        bits = page.slider("bits", "Bits", 2, 8, 8, width=120, help="Of the codes, under all three granularities.")
        group = page.scale(
            "group", "Weights in a group", granularity.GROUPS, 36, width=170,
            help="Per group: smaller groups follow the weights more closely and need more scales.",
        )  # fmt: skip
    low, high = granularity.ranges(granularity.scaled(channel, factor))
    whole = float(max(-low.min(), high.max()))
    guess = page.predict(
        f"One channel is {factor} times as large as it was. What do the other {len(low) - 1} lose to one scale for the "
        "whole tensor, against a scale for each channel?", LOST,
    )  # fmt: skip
    page.chart(
        channel_figure(
            Channels(low, high, sharing=False), dark=widgets.dark(), shared=(-whole, whole),
            shared_name="what one scale for all must reach", chosen=channel, quantity="weight",
        ),
        "ranges",
    )  # fmt: skip
    if guess.open:
        answer(page, guess, channel, factor, bits, group)


def answer(page: lesson.Lesson, guess: lesson.Guess, channel: int, factor: int, bits: int, group: int) -> None:
    every = granularity.shared(channel, factor, bits, group)
    tensor, own = every["tensor"].others, every["channel"].others
    lost = (own - tensor) / BIT
    guess.told(
        "little" if lost < 1 else "some" if lost <= 3 else "much",
        f"With a scale of their own they have {write('sqnr', own)}, with one for all {write('sqnr', tensor)}: "
        f"{lost:.1f} bits less.",
    )
    widgets.figures(
        [
            (f"SQNR of the others, per {name}", write("sqnr", one.others),
             f"{one.scales} scale{'s' if one.scales > 1 else ''}, {byte_size(one.size.scales)}",
             f"All channels but the scaled one; the codes take {byte_size(one.size.codes)} under each granularity.")
            for name, one in every.items()
        ]
    )  # fmt: skip
    lines = granularity.by_factor(channel, bits, group)
    if page.choice("view", "Show", VIEWS, "factors", help="Two looks at what the scales cost.") == "factors":
        page.chart(by_factor(lines, factor, widgets.dark()), "factors")
    else:
        page.chart(by_channel(every, channel, widgets.dark()), "channels")
    page.notice(slope(lines, factor) + cost(every))


def slope(lines: granularity.Lines, factor: int) -> str:
    """What the factor took from the others, per tensor and per channel."""
    if factor == 1:
        return (
            f"No channel is scaled, and still a scale for each channel is worth "
            f"{write('sqnr', float(lines['channel'][0] - lines['tensor'][0]))}: no two channels reach equally far. "
        )
    at, doublings = granularity.FACTORS.index(factor), math.log2(factor)
    taken = float(lines["tensor"][0] - lines["tensor"][at])
    each = taken / doublings
    unmoved = max(abs(float(lines[name][0] - lines[name][at])) for name in ("channel", "group"))
    text = f"Doubling one channel {doublings:.0f} times took {write('sqnr', taken)} from all others, {each:.1f} dB each"
    text += ": about one bit for every doubling. " if abs(each - BIT) < 1 else ". "
    if lines["tensor"][at] < 1:
        text += "Nearly all of them are rounded to 0 by now, so there is nothing more to lose. "
    if unmoved < 0.05:
        text += "Per channel and per group they do not notice. "
    return text


def cost(every: granularity.Every) -> str:
    more = [every[name].size.scales - every["tensor"].size.scales for name in ("channel", "group")]
    codes = every["tensor"].size.codes
    return (
        f"The scales of the channels cost {byte_size(more[0])} more, those of the groups {byte_size(more[1])}, beside "
        f"{byte_size(codes)} of codes."
    )


def network(page: lesson.Lesson) -> None:
    page.section("Does it matter to a network?")
    page.text(
        "In a depthwise convolution each channel has a filter of its own, and folding leaves them of very different "
        "size. depthwise_digits has such layers. In this sample two channels of each were made larger still, and the "
        "layers before them smaller by as much, so that in float it computes what was trained."
    )
    layers = {name: name.removesuffix(".weight") for name in granularity.depthwise_layers()}
    with page.controls("network"):
        layer = page.select("layer", "Layer", layers, next(iter(layers)), width=200, help="Whose weights are drawn.")
        bits = page.scale(
            "network_bits", "Bits of the weights", sorted(granularity.NETWORK_BITS), 8, width=170,
            help="Of all weights of the network; the activations have 8 bits.",
        )  # fmt: skip
    found = sample(granularity.DEPTHWISE)
    low, high = granularity.ranges(found.weights[layer])
    reached = found.float_evaluation.accuracy or 0.0
    guess = page.predict(
        f"In float {write('accuracy', reached)} of the {found.float_evaluation.n:,} evaluation images are named right. "
        f"What is left with {bits} bits and one scale for each weight tensor?", LEFT, name="network_guess",
    )  # fmt: skip
    page.chart(
        channel_figure(Channels(low, high, sharing=False), dark=widgets.dark(), ranked=True, quantity="weight"),
        "layer_ranges",
    )
    if not guess.open:
        return
    with st.spinner("Evaluating the network per tensor and per channel, at each number of bits"):
        granularity.prepare()
    tensor, own = (granularity.outcome(name, bits) for name in ("tensor", "channel"))
    loss = reached - (tensor.evaluation.accuracy or 0.0)
    guess.told(
        "same" if not tensor.against.significant else "points" if loss <= 0.2 else "ruin",
        f"{write('accuracy', tensor.evaluation.accuracy)} are left: {tensor.against.verdict}.",
    )
    page.chart(accuracy_dots(dots(bits), widgets.dark()), "accuracy")
    widgets.figures(
        [
            (f"Accuracy, per {name}", write("accuracy", one.evaluation.accuracy),
             f"{metric('accuracy').interval(*one.evaluation.accuracy_interval)}, {COMPUTED[one.evaluation.backend]}",
             "On the whole evaluation part, with its 95 % interval.")
            for name, one in (("tensor", tensor), ("channel", own))
        ]
        + [
            ("All scales, per tensor", byte_size(tensor.size.scales), None, "Of all layers, 4 bytes each."),
            ("All scales, per channel", byte_size(own.size.scales),
             f"of {byte_size(own.size.quantized_bytes)}", "Of all layers, and the size of the whole network."),
        ]
    )  # fmt: skip
    page.notice(
        f"In {layers[layer]} the largest channel reaches "
        f"{granularity.spread(found.weights[layer]):.0f} times as far as the one in the middle. Per channel, with the "
        f"same {bits} bits: {own.against.verdict}.",
        name="second_notice",
    )


def dots(bits: int) -> list[Dot]:
    seen = [("float", sample(granularity.DEPTHWISE).float_evaluation, "float")]
    for name in ("tensor", "channel"):
        seen.append((f"{bits} bits per {name}", granularity.outcome(name, bits).evaluation, "quantized"))
    return [Dot(label, one.accuracy, *one.accuracy_interval, kind) for label, one, kind in seen]


def most_uneven() -> None:
    """The weight of the current model whose largest channel sticks out most."""
    known = trial.tensors(cache.network(state.model_ref()))
    spreads = {
        name: granularity.spread(weight.movedim(known.entries[name].axis or 0, 0))
        for name, weight in known.weights.items()
        if weight.ndim > 1
    }
    if spreads:
        state.set_tensor(max(spreads, key=spreads.__getitem__))


lesson.show("granularity", draw)
