"""Small messages leave at once: the option is set on the socket the browser talks to and on the listening one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

# Counts before and after, so that the test fails if Streamlit one day sets the option itself and the module can go.
APP = """
import socket
import streamlit as st
from qlab.ui import latency

def options():
    sockets = [s for server in latency._running_servers() for s in latency._sockets(server)]
    return [bool(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) for s in sockets]

if "before" not in st.session_state:
    st.session_state.before = options()
    latency.send_at_once()
st.title("sockets")
st.text(f"before {st.session_state.before}")
st.text(f"after {options()}")
"""


def test_option_is_set_on_every_socket_and_inherited_by_later_ones(tmp_path: Path, launch, visit) -> None:
    app = tmp_path / "sockets.py"
    app.write_text(APP)
    server = launch(app)
    first = visit(server)
    first.settle()
    before, after = first.page.get_by_test_id("stText").all_inner_texts()
    assert "True" not in before
    # The listening socket and the websocket of this page at least.
    assert after.count("True") >= 2
    assert "False" not in after
    second = visit(server)
    second.settle()
    assert "False" not in second.page.get_by_test_id("stText").nth(0).inner_text()
