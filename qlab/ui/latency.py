"""Sends every message to the browser at once.

Streamlit binds its own socket without naming the protocol, and asyncio sets TCP_NODELAY only on sockets that name it.
Without the option the kernel holds small messages back for about 40 ms. Streamlit 1.67 offers no setting for it.
"""

from __future__ import annotations

import gc
import socket


def send_at_once() -> int:
    """Sets TCP_NODELAY on the sockets of this process that wait for browsers; returns on how many.

    Call it when the server starts: the socket is bound by then, and connections made later inherit the option (Linux,
    macOS and Windows all do). Not later: walking all objects while another thread is importing can break that import.
    """
    # Streamlit keeps the socket in a local variable; the collector's list is the one way to it. type() and not
    # isinstance(): the latter runs code of lazy proxies it meets on the way.
    found = [o for o in gc.get_objects() if type(o) is socket.socket]
    waiting = [s for s in found if s.fileno() >= 0 and s.family in (socket.AF_INET, socket.AF_INET6)]
    streams = [s for s in waiting if s.type == socket.SOCK_STREAM and s.getsockname()[1]]
    for s in streams:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return len(streams)
