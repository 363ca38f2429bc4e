"""Small messages leave at once: the option is set on the socket the browser talks to and on the listening one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

SCRIPT = """
import gc
import socket
import streamlit as st
from qlab.ui import warm

if __name__ == "__main__":
    inet = [o for o in gc.get_objects() if type(o) is socket.socket and o.fileno() >= 0 and o.family == socket.AF_INET]
    st.title("sockets")
    st.text([bool(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) for s in inet if s.type == socket.SOCK_STREAM])
else:
    app = st.App(__file__{lifespan})
"""


@pytest.mark.parametrize(
    ("lifespan", "at_once"), [("", False), (", lifespan=warm.lifespan", True)], ids=["bare", "ours"]
)
def test_option_is_set_on_the_listening_socket_and_inherited(tmp_path: Path, launch, visit, lifespan, at_once) -> None:
    # The bare server is there so that this fails, and latency.py can go, if Streamlit one day sets the option itself.
    path = tmp_path / "sockets_page.py"
    path.write_text(SCRIPT.replace("{lifespan}", lifespan))
    page = visit(launch(path))
    page.settle()
    shown = page.page.get_by_test_id("stText").inner_text()
    # The listening socket and the websocket of this page at least.
    assert shown.count(str(at_once)) >= 2
    assert str(not at_once) not in shown
