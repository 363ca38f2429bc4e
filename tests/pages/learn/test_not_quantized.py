"""Lesson 12 teaches why a Linear stays float: its ledger line says so, and an outlier is no reason."""

from __future__ import annotations

import warnings

import pytest
import torch

from qlab.lessons import not_quantized
from tests.pages.elements import array, button, charts, figures, texts

FLOAT = {  # case -> its settings under which the layer stays float, with the cause
    "rule": ({"fc*", "linear"}, "excluded"),
    "name": ({"net.fc2", "FC2"}, "default_float"),
    "group": ({"32", "64"}, "group_size"),
    "computed": ({"every call"}, "weight_computed"),
}
SETTINGS = {
    "rule": list(not_quantized.RULES), "name": list(not_quantized.PATTERNS),
    "group": [str(n) for n in not_quantized.GROUPS], "computed": ["every call", "merged"],
}  # fmt: skip


@pytest.fixture
def page(open_page):
    at = open_page("not_quantized")
    assert not at.exception
    return at


@pytest.mark.parametrize("case", FLOAT)
def test_the_layer_is_float_where_the_case_says_and_quantized_elsewhere(case) -> None:
    floats, cause = FLOAT[case]
    for setting in SETTINGS[case]:
        found = not_quantized.line(case, setting)
        assert found.row.quantized == (setting not in floats), (case, setting)
        if setting in floats:
            assert found.row.cause == cause
            assert bool(found.remedies) != bool(found.nothing_helps)
            assert not found.remedies or found.remedies[0].row.quantized


@pytest.mark.parametrize("case", FLOAT)
def test_the_page_says_what_the_ledger_says_once_a_guess_was_made(page, case) -> None:
    page.selectbox(key="learn_not_quantized_case").set_value(case).run()
    assert not page.table
    page.button_group(key=f"learn_not_quantized_{case}_guess").set_value("yes").run()
    for setting in SETTINGS[case]:
        page.button_group(key=f"learn_not_quantized_{case}_setting").set_value(setting).run()
        assert not page.exception
        row = not_quantized.line(case, setting).row
        assert page.table[0].value["State"].tolist() == ["quantized" if row.quantized else "float"]
        assert row.reason in texts(page, "success" if row.quantized else "warning")
    button(page, "Hide the answer").click().run()
    assert not page.table


def test_what_is_offered_puts_the_layer_on_integers(page) -> None:
    page.selectbox(key="learn_not_quantized_case").set_value("name").run()
    page.button_group(key="learn_not_quantized_name_guess").set_value("no").run()
    assert "matches nothing" in texts(page, "markdown")
    page.selectbox(key="learn_not_quantized_name_remedy").set_value("0").run()
    before, after = (table.value["State"].item() for table in page.table[:2])
    assert (before, after) == ("float", "quantized")


def test_torch_leaves_a_bare_layer_alone_and_replaces_one_inside_a_module(page) -> None:
    page.selectbox(key="learn_not_quantized_case").set_value("torch").run()
    page.button_group(key="learn_not_quantized_torch_guess").set_value("no").run()
    assert "torch.nn.modules.linear.Linear" in texts(page, "success")
    page.button_group(key="learn_not_quantized_torch_setting").set_value("inside").run()
    assert "torch.ao.nn.quantized" in texts(page, "warning")
    assert not_quantized.bare_here().quantized


@pytest.mark.peers
def test_so_does_the_dynamic_way_that_the_text_shows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        layer = torch.nn.Linear(10, 5)
        assert type(quantize_dynamic(layer, {torch.nn.Linear}, dtype=torch.qint8)) is torch.nn.Linear
        inside = quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear}, dtype=torch.qint8)
        assert type(inside[0]) is not torch.nn.Linear


def test_an_outlier_does_not_keep_a_layer_float_but_spoils_its_grid(page) -> None:
    assert "Weights that became 0" not in figures(page)
    page.button_group(key="learn_not_quantized_outlier_guess").set_value("float").run()
    seen = {}
    for layer in ("fc1", "fc3"):
        page.button_group(key="learn_not_quantized_layer").set_value(layer).run()
        for scheme in ("per_tensor_symmetric", "per_channel_symmetric"):
            page.button_group(key="learn_not_quantized_scheme").set_value(scheme).run()
            shown = figures(page)
            assert shown["Ledger"] == "quantized"
            seen[layer, scheme] = float(shown["SQNR of its output"].split()[0])
            assert "You said: it stays float" in texts(page, "warning")
            (counts,) = [c for c in charts(page) if "weights on it" in str(c["layout"]["yaxis"])]
            assert (
                sum(array(counts["data"][0]["y"]))
                == not_quantized.sample("outlier_mlp").weights[f"{layer}.weight"].numel()
            )
    assert seen["fc1", "per_tensor_symmetric"] < 20 < seen["fc1", "per_channel_symmetric"]
    assert seen["fc3", "per_tensor_symmetric"] > 40


def test_the_way_to_the_own_model_opens(page) -> None:
    page.button(key="learn_not_quantized_yours_ledger_go").click().run()
    assert not page.exception
    assert "Why is my layer not quantized?" in texts(page, "title")
