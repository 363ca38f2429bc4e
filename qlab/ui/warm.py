"""Loads what is slow while a person reads the first page: torch takes one to two seconds, the job runner about one."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from qlab.ui import cache, latency, library

LOG = logging.getLogger("qlab.ui")


@asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[None]:
    """Around the server's life, before the first visitor.

    A folder named pages beside the app makes Streamlit treat the first visit to a new server as one to its old kind of
    multipage app, which knows no page but the start page: a deep link then opens with "Page not found" over it.
    """
    PagesManager.uses_pages_directory = False
    LOG.debug("TCP_NODELAY on %d sockets", latency.send_at_once())
    # While the first visitor's browser loads the app itself, the cores have nothing else to do.
    # torch alone: a page that wants it waits for it, whereas two threads that import parts of it at once can meet one
    # that is half there.
    threading.Thread(target=import_module, args=("torch",), name="qlab-import", daemon=True).start()
    yield


def up() -> None:
    """Starts the warm-up once per server; the frame calls it when the page is drawn."""
    _once()


@st.cache_resource(show_spinner=False)
def _once() -> threading.Thread:
    thread = threading.Thread(target=_work, name="qlab-warm-up", daemon=True)
    thread.start()
    return thread


def _work() -> None:
    cache.runner().start()
    # The first capture of a model makes torch import its tracing parts; the others take a tenth of a second each.
    for name in library.cards():
        cache.model(library.sample_model(name))
