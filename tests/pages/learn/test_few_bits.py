"""Lesson 11 teaches where codes lie in bytes, that (code - zero point) x scale reads them, and what groups cost."""

from __future__ import annotations

import numpy as np
import pytest

from qlab.lessons import few_bits
from qlab.metrics import MINUS
from tests.pages.elements import array, button, charts, deltas, figures, texts

RIGHT, WRONG = "(code − zero point) × scale", "code × scale + zero point"


def number(text: str) -> float:
    return float(text.split()[0].replace(MINUS, "-"))


@pytest.fixture
def page(open_page):
    at = open_page("few_bits", query=dict.fromkeys(("weight", "read_weight", "group_weight"), "outlier_mlp/fc2"))
    assert not at.exception
    return at


def choose(at, name: str, value: str) -> None:
    at.button_group(key=f"learn_few_bits_{name}").set_value(value).run()
    assert not at.exception


@pytest.mark.parametrize("bits", few_bits.BITS)
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_a_number_is_read_from_its_bytes_bit_by_bit(page, bits: int, scheme: str) -> None:
    choose(page, "guess", "low")
    choose(page, "bits", str(bits))
    choose(page, "scheme", scheme)
    found = few_bits.held("outlier_mlp/fc2", bits, scheme == "affine", "32")
    for index in (0, 1, 2, 5):
        page.slider(key="learn_few_bits_index").set_value(index).run()
        seen, more = figures(page), deltas(page)
        code = int(found.tensor.codes.reshape(-1)[index])
        assert number(seen["Code"]) == code
        assert number(seen["Less zero point"]) == code - int(more["Less zero point"].split()[-1])
        assert seen["Times scale"] == seen["In the engine"]
    assert f"Of all {found.count:,} codes, {found.count:,} are the same" in texts(page, "markdown")
    assert f"and {found.count:,} of the floats" in texts(page, "markdown")
    assert "As you said: **in the low bits" in texts(page, "success")


def test_every_number_is_read_back_to_the_last_bit() -> None:
    found = few_bits.held("outlier_mlp/fc1", 3, True, "channel")  # some codes lie across two bytes
    flat = found.tensor.dequantize().reshape(-1)
    assert [few_bits.read(found, i).value for i in range(200)] == flat[:200].tolist()
    assert few_bits.read(found, found.count - 1).value == float(flat[-1])
    assert found.same_codes == found.same_values == found.count


def test_the_sum_with_the_zero_point_ruins_the_weights_and_only_where_it_is_not_zero(page) -> None:
    choose(page, "formula", "same")
    assert "It is: **weights that are far off.**" in texts(page, "warning")
    seen, more = figures(page), deltas(page)
    assert number(seen[RIGHT]) > 90
    assert number(seen[WRONG]) < 30
    right, wrong = (float(more[name].split("SQNR ")[1].split()[0].replace(MINUS, "-")) for name in (RIGHT, WRONG))
    assert right > 15
    assert wrong < 0
    assert "0 of 500 predictions differ" in texts(page, "markdown")
    (picture,) = [c for c in charts(page) if any(t.get("name") == WRONG for t in c["data"])]
    lines = {t["name"]: np.array(array(t["y"])) - np.array(array(t["x"])) for t in picture["data"][1:]}
    assert np.median(lines[WRONG]) > 10 * abs(lines[RIGHT]).max()
    choose(page, "read_scheme", "symmetric")
    assert "As you said: **the same weights.**" in texts(page, "success")
    assert figures(page)[RIGHT] == figures(page)[WRONG]


def test_what_is_added_has_to_be_the_value_of_code_zero() -> None:
    found = few_bits.held("outlier_mlp/fc2", 4, True, "32")
    assert np.allclose(found.with_offset, found.right, atol=1e-6)
    assert np.median(found.wrong - found.right) > 1


def test_smaller_groups_are_closer_and_cost_more(page) -> None:
    choose(page, "groups", "one")
    for scheme, each, extra in (("affine", "32", 1.25), ("symmetric", "32", 1.0), ("symmetric", "16", 2.0)):
        choose(page, "group_scheme", scheme)
        choose(page, "each", each)
        assert f"{extra:.2f} bits more" in texts(page, "success", "warning")
        picture = charts(page)[-1]
        for line in picture["data"]:
            assert np.all(np.diff(array(line["x"])) > 0)
            assert np.all(np.diff(array(line["y"])) > 0)
    assert "It is: **two bits or more.**" in texts(page, "warning")


def test_answers_are_hidden_until_one_is_given(page) -> None:
    assert len(charts(page)) == 1  # the codes alone
    assert set(figures(page)) == {"First codes", "First byte", "All codes"}
    assert "Code 0 takes" not in texts(page, "info", "success", "warning")
    button(page, "Show without a guess").click().run()
    assert "Code 0 takes the bits 0 to 3 of byte 0" in texts(page, "info")


def test_it_goes_on_with_the_own_model(page) -> None:
    choose(page, "bits", "3")
    button(page, "Weights with residual\\_digits").click().run()
    assert not page.exception
    assert figures(page)["Bits"] == "3"
