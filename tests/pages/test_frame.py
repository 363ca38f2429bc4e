"""What every page has in common: the first visit, the sidebar, the shared state, failures in one box."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from qlab.preset import presets
from qlab.ui import errors, library
from tests.pages.elements import said

ROOT = Path(__file__).resolve().parents[2]


def test_first_visit_stands_on_a_sample_with_its_data_and_a_preset(open_page) -> None:
    at = open_page()
    assert at.session_state["lab.model"] == library.sample_model("residual_digits")
    assert at.session_state["lab.data"] == library.sample_data("residual_digits")
    assert at.session_state["lab.mapping"] == presets["x86"]
    assert [box.value for box in at.sidebar.selectbox] == ["residual_digits", "residual_digits"]
    assert any("x86" in m.value for m in at.sidebar.markdown)
    assert not at.exception
    assert not at.error


def test_sidebar_switches_the_model_and_takes_its_data_along(open_page) -> None:
    at = open_page()
    at.sidebar.selectbox(key="frame_model").select("lstm_text").run()
    assert at.session_state["lab.model"].source == "lstm_text"
    assert at.session_state["lab.data"].source == "lstm_text"
    assert at.sidebar.selectbox(key="frame_data").value == "lstm_text"
    assert not at.error


def test_data_can_be_switched_alone(open_page) -> None:
    at = open_page()
    at.sidebar.selectbox(key="frame_data").select("conv_digits").run()
    assert at.session_state["lab.model"].source == "residual_digits"
    assert at.session_state["lab.data"].source == "conv_digits"


def test_link_opens_its_model_data_and_run(open_page) -> None:
    at = open_page(query={"model": "outlier_mlp", "data": "outlier_mlp", "run": "abc"})
    assert at.session_state["lab.model"].source == "outlier_mlp"
    assert at.session_state["lab.run"] == "abc"


def test_link_to_a_model_that_is_not_here_says_so_and_opens_the_default(open_page) -> None:
    at = open_page(query={"model": "sha256:" + "0" * 64})
    assert at.session_state["lab.model"].source == "residual_digits"
    assert "not here" in said(at.info[0])
    assert not at.run().info


def test_switching_the_model_forgets_the_tensor_and_the_run_of_the_other(open_page) -> None:
    at = open_page(state={"lab.tensor": "conv1"}, query={"run": "abc"})
    at.sidebar.selectbox(key="frame_model").select("conv_digits").run()
    assert "lab.tensor" not in at.session_state
    assert "lab.run" not in at.session_state


def test_config_is_named_by_its_preset_until_it_is_changed() -> None:
    def script() -> None:
        import streamlit as st

        from qlab.ui import library, state

        st.session_state["lab.model"] = library.sample_model("residual_digits")
        st.session_state["lab.data"] = library.sample_data("residual_digits")
        st.text(state.config_label())
        changed = state.mapping().replace(by_name={"fc": None})
        state.set_mapping(changed)
        st.text(state.config_label())
        st.text(state.experiment().to_dict()["mapping"]["by_name"])

    at = AppTest.from_function(script).run()
    assert [t.value for t in at.text] == ["x86", "W8 min_max · A8 mse · static · 1 override", "{'fc': None}"]


def test_experiment_is_what_the_shared_state_says(open_page) -> None:
    def script() -> None:
        import streamlit as st

        from qlab.ui import library, state

        st.session_state["lab.model"] = library.sample_model("residual_digits")
        ref = library.DataRef("some.npz", "some", "sample", scale=1 / 255, mean=(0.5,), calibration_samples=100)
        st.session_state["lab.data"] = ref
        st.json(state.experiment().to_dict())

    at = AppTest.from_function(script).run()
    assert not at.exception
    spec = at.json[0].value
    for part in ('"mapping": "x86"', '"path": "some.npz"', '"mean": [0.5]', '"calibration_samples": 100'):
        assert part.replace(" ", "") in spec.replace(" ", "")


def test_widget_value_outlives_its_page_and_follows_the_state() -> None:
    def script() -> None:
        import streamlit as st

        from qlab.ui import widgets

        if st.toggle("elsewhere", key="elsewhere"):
            st.session_state["canonical"] = 3
        if st.checkbox("shown", True, key="shown"):
            value = st.session_state.get("canonical", 8)
            widgets.kept(
                st.slider, "Bits", 2, 8, value=value, store=lambda v: st.session_state.update(canonical=v), key="bits"
            )

    at = AppTest.from_function(script).run()
    at.slider(key="bits").set_value(5).run()
    assert at.session_state["canonical"] == 5
    at.checkbox(key="shown").uncheck().run()
    at.checkbox(key="shown").check().run()
    assert at.slider(key="bits").value == 5
    at.toggle(key="elsewhere").set_value(True).run()
    assert at.slider(key="bits").value == 3


def test_failures_become_one_box_and_the_page_goes_on() -> None:
    def script() -> None:
        import streamlit as st

        from qlab.errors import BadUpload
        from qlab.ui import errors

        with errors.box():
            raise BadUpload("The file *x* is empty. Write it again:\n\nimport torch", detail="byte 0")
        with errors.box():
            raise ZeroDivisionError("hidden")
        st.text("still here")

    at = AppTest.from_function(script).run()
    assert not at.exception
    first, second = (box.value for box in at.error)
    assert "The file \\*x\\* is empty" in first
    assert "import torch" not in first
    assert second.startswith("Something in the lab itself went wrong")
    assert "hidden" not in second
    repair, detail, fault = (code.value for code in at.code)
    assert (repair, detail) == ("import torch", "byte 0")
    assert "ZeroDivisionError: hidden" in fault
    assert at.text[0].value == "still here"


@pytest.mark.parametrize("control", [st.stop, st.rerun], ids=["stop", "rerun"])
def test_control_flow_of_streamlit_passes_through_a_box(control) -> None:
    # Outside a script both raise at once or do nothing; what matters is that the box does not swallow the exception.
    from streamlit.runtime.scriptrunner import StopException

    with pytest.raises(StopException), errors.box():
        raise StopException


def test_importing_the_frame_imports_no_torch() -> None:
    code = "import sys, qlab.ui.frame, qlab.ui.warm; sys.exit('torch' in sys.modules or 'distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def test_no_page_lies_directly_in_pages() -> None:
    # Streamlit would start in its old mode on a cold server, and a deep link would run the page without its frame.
    assert not list((ROOT / "pages").glob("*.py"))


def test_server_settings_keep_the_lab_on_this_machine() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["server"]["allowedHosts"] == ["localhost", "127.0.0.1"]
    assert settings["browser"]["gatherUsageStats"] is False
    assert settings["client"]["showErrorLinks"] is False
    assert settings["runner"]["postScriptGC"] is False


def test_colours_of_the_theme_are_those_of_the_plots() -> None:
    import tomllib

    from qlab.plots.theme import DARK, LIGHT

    theme = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["theme"]
    for name, palette in (("light", LIGHT), ("dark", DARK)):
        meanings = [palette.float, palette.quantized, palette.gained, palette.range, palette.error, palette.neutral]
        assert theme[name]["chartCategoricalColors"] == meanings
        assert theme[name]["backgroundColor"] == palette.background
        assert theme[name]["textColor"] == palette.text
