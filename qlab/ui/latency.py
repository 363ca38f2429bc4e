"""Sends every message to the browser at once.

Streamlit binds its own socket without naming the protocol, and asyncio sets TCP_NODELAY only on sockets that name it.
Without the option the kernel holds small messages back for about 40 ms. Streamlit 1.67 offers no setting for it.
"""

from __future__ import annotations

import gc
import socket

import uvicorn


def send_at_once() -> int:
    """Sets TCP_NODELAY on the sockets of the uvicorn server in this process; returns on how many.

    Connections made later inherit the option from the listening socket (Linux, macOS and Windows all do).
    """
    sockets = [s for server in _running_servers() for s in _sockets(server)]
    for s in sockets:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return len(sockets)


def _running_servers() -> list[uvicorn.Server]:
    # Streamlit keeps the server in a private attribute of a local variable; the collector's list is the stable way
    # to it. type() and not isinstance(): the latter runs code of lazy proxies it meets on the way.
    return [o for o in gc.get_objects() if type(o) is uvicorn.Server]


def _sockets(server: uvicorn.Server) -> list[socket.socket]:
    listening = [s for asyncio_server in getattr(server, "servers", []) for s in asyncio_server.sockets]
    transports = [getattr(c, "transport", None) for c in list(server.server_state.connections)]
    connected = [t.get_extra_info("socket") for t in transports if t is not None]
    return [s for s in [*listening, *connected] if s is not None and s.family in (socket.AF_INET, socket.AF_INET6)]
