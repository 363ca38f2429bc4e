"""A comparison to take away: a report that opens anywhere, the table, and the settings of every run."""

from __future__ import annotations

import streamlit as st

from qlab.ui import cache, say
from qlab.ui.compare import Compared


def draw(shown: Compared) -> None:
    """Each file is made when its button is pressed."""
    from qlab.export.comparison_table import comparison_csv, comparison_parquet, comparison_specs
    from qlab.export.report import comparison_report

    # Read here: the files are made in a thread that knows no session.
    lines, runs, baseline, store = list(shown.lines.values()), list(shown.runs), shown.baseline, cache.store()
    say.caption(
        f"All {len(runs):,} runs of this comparison. A link that opens it in this lab is under Share at the top."
    )
    with st.container(horizontal=True, gap="small"):
        st.download_button(
            "Report", lambda: comparison_report(store, runs, baseline), "comparison.html", "text/html",
            key="compare_report", type="primary", on_click="ignore",
            help="One page with charts, verdicts and settings that opens in any browser, without a network.",
        )  # fmt: skip
        st.download_button(
            "Table as CSV", lambda: comparison_csv(lines), "comparison.csv", "text/csv", key="compare_csv",
            on_click="ignore", help="One row for each run with every figure and setting, for a spreadsheet.",
        )  # fmt: skip
        st.download_button(
            "Table as Parquet", lambda: comparison_parquet(lines), "comparison.parquet",
            "application/vnd.apache.parquet", key="compare_parquet", on_click="ignore",
            help="The same table with its types, for pandas and other tools.",
        )  # fmt: skip
        st.download_button(
            "Specs as JSON", lambda: comparison_specs(runs), "specs.json", "application/json", key="compare_specs",
            on_click="ignore", help="What every run was asked for; python -m qlab run repeats each of them.",
        )  # fmt: skip
