"""Code that RMD's servers share: listening at an address, running an application, and fixed headers of its answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmd.common.errors import RMDError, check_text
from rmd.common.files import reason

ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""Headers of every answer of every server of RMD."""


@contextmanager
def bind(host: str, port: int) -> Iterator[socket.socket]:
    """Listen at an address during the block.

    Raises:
        RMDError: the address is not one of this machine, or the port is taken.
    """
    check_text("--host", host)
    if not host:
        raise RMDError("--host is empty: use 127.0.0.1, or 0.0.0.0 for every address of this machine")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)  # who comes before the server has started waits for it
        except (OSError, UnicodeError) as error:
            raise RMDError(f"cannot listen at {host}, port {port}: {reason(error)}; choose another --port") from error
        yield listener


def address(host: str, listener: socket.socket) -> str:
    """Return the URL of a server that listens there, without a slash at its end."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def run(
    app: Any,
    listener: socket.socket,
    server: Callable[[uvicorn.Config], uvicorn.Server] = uvicorn.Server,
    *,
    grace: int | None = None,
) -> None:
    """Serve an application until somebody presses Ctrl-C or ends the process.

    It logs nothing but trouble, and does not give its name away.

    Args:
        app: the application.
        listener: the socket at which it listens.
        server: the kind of server.
        grace: seconds for which requests under way may go on after that; None: until they are finished.
    """
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=grace
    )
    with suppress(KeyboardInterrupt):  # the server raises it again after it has ended in order
        server(settings).run(sockets=[listener])


class FixedHeaders:
    """Middleware that adds headers to every answer, and forbids caches to keep those below some paths.

    Args:
        app: the application.
        headers: the headers, beside `ALWAYS`.
        uncached: beginnings of the paths whose answers no cache may keep.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str], uncached: tuple[str, ...] = ()) -> None:
        self.app, self.headers, self.uncached = app, {**ALWAYS, **headers}, uncached

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add(scope, message)
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _add(self, scope: Scope, message: MutableMapping[str, Any]) -> None:
        headers = MutableHeaders(scope=message)
        headers.update(self.headers)
        if scope["path"].startswith(self.uncached):
            headers["Cache-Control"] = "no-store"
