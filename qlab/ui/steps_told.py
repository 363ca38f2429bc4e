"""The steps of one output number, told one under the other with the integers that were really multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.metrics import MINUS, percent, three_digits, whole
from qlab.plots.steps import accumulator_line, window_heatmaps
from qlab.runtime.steps import INT32, Steps
from qlab.ui import cache, errors, export, say, state, steps_known, widgets

if TYPE_CHECKING:
    from qlab.ui.steps_known import Answers

WORDS_WIDTH = 460
ALL = -1  # input channels, as an entry beside theirs


def headline(found: Answers) -> None:
    """The four answers for this number, large."""
    steps, kernel = found.by_hand, found.kernel_code
    off = None if kernel is None else kernel - steps.code
    beside = _absent(found) if off is None else "the same" if not off else f"{_signed(f'{off:+d}')} from by hand"
    truth = steps.float_value
    error = None if truth is None else abs(steps.value - truth) / steps.output_scale
    widgets.figures(
        [
            (
                "By hand, on integers", _int(steps.code), f"stands for {_value(steps.value)}",
                "What the steps below give: an integer, and the value it stands for.",
            ),
            (
                "Integer kernel", "–" if kernel is None else _int(kernel),
                beside,
                "What ONNX Runtime gave for this very number when it ran the quantized network on this sample.",
            ),
            (
                "Simulated", _int(steps.simulated_code), f"stands for {_value(steps.simulated)}",
                "What fake quantization in float arithmetic gives.",
            ),
            (
                "Float", "–" if truth is None else _value(truth),
                None if error is None else f"integer is off by {_real(error)} steps",
                "What the network gave before it was quantized. One step is the output scale.",
            ),
        ]
    )  # fmt: skip


def _absent(found: Answers) -> str:
    return "could not be run" if found.why else "being prepared"


def tell(found: Answers) -> None:
    """All steps of the hand computation, and what the kernel says to it."""
    steps = found.by_hand
    _window(steps)
    _sum(steps)
    st.subheader("3 · From the sum to the output integer", anchor=False)
    for title, words, formula in lines(steps):
        with st.container(horizontal=True, gap="medium", vertical_alignment="center"):
            with st.container(width=WORDS_WIDTH):
                say.markdown(f"**{title}**  \n{words}")
            with st.container(width="stretch"):
                st.code(formula, language=None, wrap_lines=True)
    _verdict(found)


def lines(steps: Steps) -> list[tuple[str, str, str]]:
    """(title, words, formula with its numbers) of everything behind the sum of products."""
    total = steps.accumulator + (steps.bias or 0)
    unit = steps.input_scale * steps.weight_scale
    plus, y_scale, y_zero = (
        steps.rounded + steps.output_zero_point,
        steps.output_scale,
        _in_sum(steps.output_zero_point),
    )
    late = f" + {_value(steps.bias_value)} / {y_scale:.6g}" if steps.bias is None and steps.bias_value else ""
    scaled = _signed(f"{steps.scaled:.4f}")
    return [
        _bias_line(steps, unit, total),
        (
            "Rescale",
            f"The sum counts in units of {_real(unit)}, the output in steps of {_real(y_scale)}. One multiplier M goes "
            "from one to the other; it is the only number here that is not an integer.",
            f"M = {steps.input_scale:.6g} × {steps.weight_scale:.6g} / {y_scale:.6g} = {steps.multiplier:.6g}\n"
            f"{_int(total)} × {steps.multiplier:.6g}{late} = {scaled}",
        ),
        (
            "Round",
            "To the nearest integer; a value in the middle goes to the even one. This is where precision is lost: up "
            "to half a step.",
            f"round({scaled}) = {_int(steps.rounded)}",
        ),
        (
            "Add the zero point",
            f"The output grid writes 0 as the integer {_int(steps.output_zero_point)}.",
            f"{_int(steps.rounded)} + {y_zero} = {_int(plus)}",
        ),
        (
            "Clamp",
            _clamp_words(steps),
            f"clamp({_int(plus)}, {_int(steps.low)}, {_int(steps.high)}) = {_int(steps.code)}",
        ),
        (
            "What it stands for",
            "The next layer reads the integer. To a person it means this value.",
            f"({_int(steps.code)} − {y_zero}) × {y_scale:.6g} = {_value(steps.value)}",
        ),
    ]  # fmt: skip


def _window(steps: Steps) -> None:
    count = steps.products.size
    padded = int(steps.padded.sum())
    st.subheader("1 · Read the integers", anchor=False)
    if steps.places:
        size = " × ".join(str(len(p)) for p in steps.places)
        over = f" in {_count(len(steps.channels), 'input channel')}"
        window = f"An output number of channel {steps.channel} of `{steps.layer}` reads a window of {size}{over}"
    else:
        window = f"Output feature {steps.channel} of `{steps.layer}` reads one row of its input"
    holes = f" {_count(padded, 'of them is', 'of them are')} padding and hold the zero point." if padded else ""
    say.markdown(f"{window}: **{_count(count, 'integer')}**, each with a weight of its own.{holes}")
    st.code(
        f"input value  = (integer − {_in_sum(steps.input_zero_point)}) × {steps.input_scale:.6g}      "
        f"integers {_int(steps.input_range[0])} to {_int(steps.input_range[1])}\n"
        f"weight value = (integer − {_in_sum(steps.weight_zero_point)}) × {steps.weight_scale:.6g}      "
        f"integers {_int(steps.weight_range[0])} to {_int(steps.weight_range[1])}",
        language=None,
        wrap_lines=True,
    )
    channel = _input_channel(steps)
    widgets.chart(window_heatmaps(steps, widgets.dark(), channel), key="steps_window")
    say.caption(
        "Blue is below the zero point, orange above it: what is worth exactly 0 has the colour of the page."
        + (" A number in brackets is padding." if padded else "")
    )


def _input_channel(steps: Steps) -> int | None:
    """Which input channel is drawn; all of them only as their sum."""
    if not steps.places or len(steps.channels) == 1:
        return steps.channels[0] if steps.places else None
    sums = steps.products.reshape(len(steps.channels), -1).sum(1)
    options = [*steps.channels, ALL]
    first = steps.channels[int(abs(sums).argmax())]
    kept = st.session_state.get("steps.input", first)
    chosen = widgets.kept(
        st.selectbox, "Input channel shown", options, value=kept if kept in options else first, store=_keep_input,
        key="steps_input", width=330,
        format_func=lambda c: "all, their products summed" if c == ALL
        else f"{c}: products add up to {_int(int(sums[c - steps.channels[0]]))}",
        help="Shows the integers of one input channel; every channel adds its products to the same sum.",
    )  # fmt: skip
    return None if chosen == ALL else chosen


def _keep_input(channel: int) -> None:
    st.session_state["steps.input"] = channel


def _sum(steps: Steps) -> None:
    st.subheader("2 · Multiply and add up", anchor=False)
    largest = int(abs(steps.products).argmax())
    x, w, product = (int(a.ravel()[largest]) for a in (steps.inputs, steps.weights, steps.products))
    words = (
        f"Each integer minus its zero point, times its weight, gives a product. All {steps.products.size:,} are "
        "added up in one 32-bit integer, the **accumulator**. No rounding happens here."
    )
    formula = (
        f"largest product: ({_int(x)} − {_in_sum(steps.input_zero_point)}) × ({_int(w)} − "
        f"{_in_sum(steps.weight_zero_point)}) = {_int(product)}\n"
        f"sum of all {steps.products.size:,}: {_int(steps.accumulator)}"
    )
    say.markdown(words)
    st.code(formula, language=None, wrap_lines=True)
    widgets.chart(accumulator_line(steps, widgets.dark()), key="steps_accumulator")
    reach = max(abs(int(steps.running.min())), abs(int(steps.running.max())))
    if steps.overflows:
        st.error("This sum leaves 32 bits: a kernel would wrap around and give a wrong number here.")
    else:
        say.caption(f"At its largest, the sum uses {percent(reach / INT32)} of what 32 bits can hold.")


def _bias_line(steps: Steps, unit: float, total: int) -> tuple[str, str, str]:
    if steps.bias is not None:
        return (
            "Add the bias",
            "The bias is stored as an integer too, in units of one product: input scale × weight scale = "
            f"{_real(unit)}.",
            f"bias = round({_value(steps.bias_value)} / {unit:.6g}) = {_int(steps.bias)}\n"
            f"{_int(steps.accumulator)} + {_in_sum(steps.bias)} = {_int(total)}",
        )
    if steps.bias_value:
        return (
            "Keep the bias for later",
            "In units of one product this bias does not fit 32 bits, so it is added in float, after rescaling.",
            f"bias = {_value(steps.bias_value)}",
        )
    return "No bias", "This layer adds none; the sum stays as it is.", f"{_int(total)}"


def _clamp_words(steps: Steps) -> str:
    relu = steps.low == steps.output_zero_point
    words = f"Only integers from {_int(steps.low)} to {_int(steps.high)} exist here."
    if relu:
        words += " The lowest one stands for 0: what is negative becomes 0, as a ReLU wants it, at no cost."
    return f"{words} {'**The number lay outside and was cut off.**' if steps.clamped else 'The number lies inside.'}"


def _verdict(found: Answers) -> None:
    """Integer kernel against hand computation, in words."""
    steps, kernel = found.by_hand, found.kernel_code
    st.subheader("4 · What the integer kernel really gave", anchor=False)
    if not found.kernel and not found.why:
        _prepare(found.network)
        return
    if found.kernel is None or found.from_kernel is None or kernel is None:
        say.info(
            f"The network could not be run on integers, so there is nothing to compare. {errors.escape(found.why)}"
        )
        return
    moved = int((found.from_kernel.inputs != steps.inputs).sum())
    name = f"ONNX Runtime {found.runtime} gave the integer **{_int(kernel)}**"
    if kernel == steps.code and not moved:
        say.markdown(f"{name} from the same {steps.products.size:,} input integers: exactly the result above.")
    elif not moved:
        say.markdown(
            f"{name} from the same input integers, {_int(kernel - steps.code)} away from the result above, although "
            "both add up the same products. The kernel rescales in another way, or saturates; see Runtime."
        )
    else:
        same = found.from_kernel.code == kernel
        say.markdown(
            f"{name}. Of its {steps.products.size:,} input integers, {moved:,} had arrived different there, because "
            f"earlier layers had rounded to the other side. From the kernel's own input integers the same steps give "
            f"**{_int(found.from_kernel.code)}**: {'the same' if same else 'not the same'}."
        )
    if steps.difference:
        say.markdown(
            f"The simulation says {_int(steps.simulated_code)}: it computes in float, where the number before rounding "
            "came out a little different."
        )
    differing, every = len(found.kernel.differing), found.kernel.codes.numel()
    opened = "; ".join(f"`{entry}` ({why})" for entry, why in found.entries.items())
    say.caption(
        f"In this layer and sample, {differing:,} of {every:,} integers differ from the simulated ones."
        if differing
        else f"In this layer and sample, all {every:,} integers are the simulated ones."
    )
    if opened:
        say.caption(f"The session was opened with {opened}.")


def _prepare(network: str) -> None:
    """Has the network exported by a job, whose progress is shown here."""
    files = export.files(cache.model(state.model_ref()))
    if files is None:
        return
    if files.blocked:
        say.info(f"The network could not be run on integers. {errors.escape(files.blocked)}")
    else:
        steps_known.make_here(network)
        st.rerun()


# --- numbers ----------------------------------------------------------------------------------------------------------


def _int(value: float) -> str:
    return whole(value).replace("-", MINUS)


def _in_sum(value: int) -> str:
    """Behind a plus or minus: negative ones in brackets."""
    return f"({_int(value)})" if value < 0 else _int(value)


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


def _value(value: float) -> str:
    """Five significant digits: enough that a difference of a fraction of a step can be seen."""
    return _signed(f"{value:.5g}")


def _real(value: float) -> str:
    return _signed(three_digits(value))


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"
