"""Loads what is slow while a person reads the first page: torch takes one to two seconds, the job runner about one."""

from __future__ import annotations

import logging
import threading

import streamlit as st

from qlab.ui import cache, latency, library

LOG = logging.getLogger("qlab.ui")


def up() -> None:
    """Starts the warm-up once per server; the frame calls it when the page is drawn."""
    _once()


@st.cache_resource(show_spinner=False)
def _once() -> threading.Thread:
    thread = threading.Thread(target=_work, name="qlab-warm-up", daemon=True)
    thread.start()
    return thread


def _work() -> None:
    LOG.debug("TCP_NODELAY on %d sockets", latency.send_at_once())
    cache.runner().start()
    # The first capture of a model makes torch import its tracing parts; the others take a tenth of a second each.
    for name in library.cards():
        cache.model(library.sample_model(name))
