"""Theme, accuracy dots, layers and channels: what is drawn and what is said when there is nothing to draw."""

import math

import numpy as np
import pytest

from qlab.plots.accuracy import Dot, accuracy_dots
from qlab.plots.channels import MOST_BARS, SUFFERS, Channels, channel_figure
from qlab.plots.layers import shorten, sqnr_bars
from qlab.plots.theme import DARK, LIGHT, empty, enlarge, figure, name_rows, palette, template

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@both_themes
def test_text_can_be_read_on_the_page(dark):
    colours = palette(dark)
    assert contrast(colours.text, colours.background) > 7
    assert contrast(colours.muted, colours.background) > 4.5


def test_light_theme_is_okabe_and_ito_and_dark_has_its_lighter_twins():
    assert (LIGHT.float, LIGHT.quantized, LIGHT.error) == ("#0072B2", "#E69F00", "#D55E00")
    for name in ("float", "quantized", "error", "gained", "range", "neutral"):
        assert luminance(getattr(DARK, name)) > luminance(getattr(LIGHT, name))
        assert contrast(getattr(DARK, name), DARK.background) > 3


@both_themes
def test_the_template_leaves_the_background_to_the_page(dark):
    layout = template(dark).layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_a_wash_is_the_same_colour_seen_through():
    assert LIGHT.wash("float", 0.25) == "rgba(0,114,178,0.25)"


def test_a_figure_that_knows_its_margins_keeps_plotly_from_looking_for_them_until_its_letters_grow():
    made = figure(False, 300, room={"t": 8, "b": 48, "r": 16})
    assert made.layout.template.layout.xaxis.automargin is False
    name_rows(made, ["short", "<b>a much longer name</b>"])
    longest = made.layout.margin.l
    assert longest > len("a much longer name") * 5
    name_rows(made, ["short"])
    assert made.layout.margin.l < longest
    enlarge(made, False, 1.5)
    assert made.layout.template.layout.xaxis.automargin is True
    assert figure(False, 300).layout.template.layout.yaxis.automargin is True


def test_an_empty_figure_says_why():
    assert empty("nothing yet", False).layout.annotations[0].text == "nothing yet"


@both_themes
def test_accuracy_dots_carry_their_intervals(dark):
    made = accuracy_dots([Dot("float", 0.978, 0.968, 0.985, "float"), Dot("quantized", 0.951, 0.938, 0.962)], dark)
    first, second = made.data
    assert first.x[0] == pytest.approx(97.8)
    assert second.error_x.array[0] == pytest.approx(1.1)
    assert second.error_x.arrayminus[0] == pytest.approx(1.3)
    assert first.marker.color == palette(dark).float
    assert second.marker.color == palette(dark).quantized
    assert "%" in made.layout.xaxis.title.text
    band = made.layout.shapes[0]
    assert (band.x0, band.x1) == (pytest.approx(96.8), pytest.approx(98.5))


def test_accuracy_without_dots_says_so():
    assert "measured" in accuracy_dots([], False).layout.annotations[0].text


def test_layers_stand_worst_first_and_nothing_is_dropped_in_silence():
    made = sqnr_bars({"good": 40.0, "bad": 5.0, "exact": math.inf, "dead": math.nan}, False)
    bars = made.data[0]
    assert list(bars.customdata) == ["bad", "good", "exact"]
    assert list(bars.text) == ["5.0 dB", "40.0 dB", "exact"]
    assert "dead" in made.layout.xaxis.title.text
    assert "(dB)" in made.layout.xaxis.title.text


def test_of_many_layers_the_worst_are_shown_and_the_rest_counted():
    made = sqnr_bars({f"layer{i}": float(i) for i in range(60)}, False, most=40)
    assert len(made.data[0].x) == 40
    assert "20 more layers" in made.layout.xaxis.title.text


def test_no_layers_says_why():
    assert "No layer" in sqnr_bars({}, False).layout.annotations[0].text
    assert "No layer" in sqnr_bars({"dead": math.nan}, True).layout.annotations[0].text


def test_long_names_lose_their_middle():
    assert shorten("conv1") == "conv1"
    short = shorten("encoder.block.11.attention.self.query.linear", 21)
    assert len(short) == 21
    assert short.startswith("encoder.bl")
    assert short.endswith("ery.linear")


def channels(count, *, known=True):
    reach = np.linspace(1.0, 0.01, count)
    own = np.full(count, 40.0)
    sqnr = own + 20 * np.log10(reach / reach.max())
    return Channels(-reach, reach, sqnr if known else None, own if known else None)


def test_channels_that_lose_two_bits_are_marked():
    made = channel_figure(channels(10), dark=False, shared=(-1.0, 1.0))
    suffering = next(t for t in made.data if t.name == SUFFERS)
    assert set(suffering.customdata) == set(np.flatnonzero(channels(10).suffers))
    assert len(suffering.x) == 3
    shared = next(t for t in made.data if "one range for all" in t.name)
    assert [y for y in shared.y if y is not None and not np.isnan(y)] == [-1.0, -1.0, 1.0, 1.0]


def test_where_only_ranges_are_known_the_range_tells_who_suffers():
    narrow = np.flatnonzero(np.linspace(1.0, 0.01, 10) < 0.25)
    assert set(np.flatnonzero(channels(10, known=False).suffers)) == set(narrow)
    assert "yaxis2" not in channel_figure(channels(10, known=False), dark=True).to_dict()["layout"]


def test_a_channel_of_zeros_does_not_suffer():
    zero = Channels(np.array([0.0, -1.0]), np.array([0.0, 1.0]), np.array([np.inf, 30.0]), np.array([np.inf, 30.0]))
    assert not zero.suffers.any()


def test_ranked_puts_the_widest_first_and_the_chosen_one_stays_marked():
    mixed = Channels(np.array([-1.0, -3.0, -2.0]), np.array([1.0, 3.0, 2.0]))
    made = channel_figure(mixed, dark=False, ranked=True, chosen=2)
    assert list(made.layout.xaxis.ticktext) == ["1", "2", "0"]
    assert (made.layout.shapes[0].x0, made.layout.shapes[0].x1) == (0.5, 1.5)


def test_thousands_of_channels_become_lines():
    made = channel_figure(channels(MOST_BARS + 1, known=False), dark=False)
    assert {trace.type for trace in made.data} == {"scatter"}


def test_no_channels_says_so():
    assert channel_figure(Channels(np.empty(0), np.empty(0)), dark=False).layout.annotations
