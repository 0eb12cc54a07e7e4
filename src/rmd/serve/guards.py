"""Middleware that refuses requests before the application sees them: without the key, too large, or too slow."""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmd.serve.problems import Problem

PROTECTED = "/v1/"
"""Paths below this one need the key."""
_DISCARDED = 64
"""Bodies up to this many times the limit are read to their end, so that the client reads why it was refused."""


class ApiKey:
    """Middleware that demands `Authorization: Bearer KEY` below `PROTECTED`; without a key it demands nothing."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app, self.key = app, None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and self.key is not None and scope["path"].startswith(PROTECTED):
            kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # The time of the comparison does not tell how much of a wrong key is right.
            if not hmac.compare_digest(given.strip().encode(), self.key) or kind.lower() != "bearer":
                refusal = Problem(
                    401, "the API key is missing or wrong: send Authorization: Bearer KEY", "invalid_api_key"
                )
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Middleware that reads the body of a request first, and refuses one that is too large or comes too slowly."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self.seconds)
        except asyncio.TimeoutError:
            refusal = Problem(408, f"the request did not arrive within {self.seconds:g} s", "request_timeout")
            await _refuse(refusal, scope, receive, send)
            return
        except Problem as problem:
            await _refuse(problem, scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        parts: list[bytes] = []
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            length += len(part)
            if length <= self.most:
                parts.append(part)
            elif length > _DISCARDED * self.most:
                break
        if length > self.most:
            raise Problem(413, f"the request is too large: send at most {self.most} bytes", "request_too_large")
        return b"".join(parts)


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a refusal, and close the connection, on which the rest of the request may still come."""
    response = problem.response()
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
