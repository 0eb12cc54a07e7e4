"""Asks an application without a server, for tests of what it answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class Answer:
    """A status, the headers by lower-case names, and the content."""

    status: int
    headers: dict[str, str]
    content: bytes


def ask(app: ASGIApp, path: str, *, method: str = "GET", **headers: str) -> Answer:
    """Return the answer of an application to a request of this machine, unless `host` is another one."""
    sent: list[Message] = []
    given = {"host": "127.0.0.1:7860", **headers}
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860),
    }  # fmt: skip

    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:  # nobody hangs up before the answer has been sent
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    first, *rest = sent
    return Answer(
        first["status"],
        {name.decode().lower(): value.decode() for name, value in first["headers"]},
        b"".join(message.get("body", b"") for message in rest),
    )
