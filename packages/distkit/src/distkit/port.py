"""A TCP port that nobody listens on."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port that is free at this moment, on the loopback interface.

    The socket that found it is closed before this returns, so another process may take the port first:
    where that matters let the server choose (port 0), as `launch` does.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
