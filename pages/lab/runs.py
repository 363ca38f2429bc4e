"""Runs: everything that was tried, to be found again, named, compared, and deleted with a way back."""

import streamlit as st

from qlab.ui import errors, frame, runs

frame.header(
    "What has been tried?",
    "Every run with its settings and its result. Search for one, give it a name, open it, or hold several against each "
    "other.",
    explain="A **run** is one job: an experiment with one configuration, a sweep of many, or what they need, such as a "
    "calibration. Its settings are stored with it, so it can be repeated. Nothing is lost by deleting: **Deleted "
    "runs** shows what was taken out of the lists.",
    terms=("accuracy", "agreement", "simulated", "calibration"),
)


@st.fragment(key="runs")
def everything() -> None:
    with errors.box():
        runs.draw()


everything()
