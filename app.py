"""The app: `streamlit run app.py`. Page config and menu; everything else is in qlab.ui and pages/."""

from pathlib import Path

import streamlit as st

from qlab.ui import curriculum, frame, warm

PAGES = Path(__file__).resolve().parent / "pages"


def main() -> None:
    st.set_page_config(page_title="qlab", page_icon="🔬", layout="wide", initial_sidebar_state=260)
    section = frame.run(
        {
            "Lab": [
                st.Page(PAGES / "lab" / "start.py", title="Start", url_path="", default=True),
                *_pages(
                    "lab",
                    experiment="Experiment",
                    distributions="Distributions",
                    sweep="Sweep",
                    training="Training (QAT)",
                    compare="Compare",
                    runs="Runs",
                ),
            ],
            "Inspect": [
                *_pages(
                    "inspect",
                    runtime="Runtime",
                    steps="One number, step by step",
                    weights="Weights",
                    files="Quantized files",
                    export="Export",
                ),
            ],
            "Diagnose": [
                *_pages(
                    "diagnose",
                    findings="Findings",
                    sensitivity="Sensitivity",
                    propagation="Error propagation",
                    stability="Stability",
                    ledger="Ledger",
                    graph="Graph",
                ),
            ],
            curriculum.SECTION: _pages("learn", **curriculum.menu()),
        }
    )
    if section != curriculum.SECTION:
        warm.up()  # lessons start no job, and what they compute needs the cores


def _pages(section: str, **titles: str) -> list[st.Page]:
    files = {name: PAGES / section / f"{name}.py" for name in titles}
    return [st.Page(path, title=titles[name], url_path=name) for name, path in files.items() if path.exists()]


# Streamlit runs this file for every page view, the server imports it once, and each spawned worker imports it again.
if __name__ == "__main__":
    main()
elif __name__ != "__mp_main__":
    app = st.App(Path(__file__).resolve(), lifespan=warm.lifespan)
