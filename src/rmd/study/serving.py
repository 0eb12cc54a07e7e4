"""Listens at an address and runs the server of a study until it is stopped."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.applications import Starlette

from rmd.common.errors import RMDError
from rmd.common.files import reason


@contextmanager
def bind(host: str, port: int) -> Iterator[socket.socket]:
    """Listen at an address during the block.

    Raises:
        RMDError: the address is not one of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)  # who comes before the server has started waits for it
        except OSError as error:
            raise RMDError(f"cannot listen at {host}, port {port}: {reason(error)}; choose another --port") from error
        yield listener


def run(app: Starlette, listener: socket.socket, *, grace: int | None = None) -> None:
    """Serve an application until somebody presses Ctrl-C or ends the process.

    Args:
        app: the application.
        listener: the socket at which it listens.
        grace: seconds for which requests under way may go on after that; None: until they are finished.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=grace
    )
    with suppress(KeyboardInterrupt):  # the server raises it again after it has ended in order
        uvicorn.Server(config).run(sockets=[listener])
