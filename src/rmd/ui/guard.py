"""The guard in front of the page: who may come, which addresses exist, and what a browser may load.

gradio has many more addresses than the page uses: uploads, files, a proxy, an interface for programs. Only those that
the page needs are passed on to it.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import secrets
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmd.common.errors import RMDError
from rmd.ui.contents import ANSWERS, PAGES
from rmd.ui.shelf import PLACE

PASSWORD = "RMD_UI_PASSWORD"
"""Environment variable with the password of the page."""
ADDRESSES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/theme.css",
             "/gradio_api/app_id", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel",
             "/gradio_api/reset", "/gradio_api/startup-events")  # fmt: skip
"""The addresses that the page needs."""
FOLDERS = (
    "/assets/", "/static/", "/svelte/", "/gradio_api/run/", "/gradio_api/heartbeat/", f"{PLACE}/", f"{PAGES}/",
    f"{ANSWERS}/",
)  # fmt: skip
"""The beginnings of further addresses that the page needs."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every answer that has none of its own: a browser loads nothing from other machines."""


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, password: str) -> None:
    """Raise RMDError unless an address is loopback, or a password protects the page."""
    if not is_loopback(host) and not password:
        raise RMDError(
            f"at {host} everybody in the network could use this machine: set a password in the environment variable "
            f"{PASSWORD}, or leave --host out"
        )


@dataclass(frozen=True)
class Guard:
    """Passes on the requests of those who may come, for addresses that the page needs.

    Attributes:
        app: the application behind the guard.
        password: the password that browsers ask for; empty: none.
        local: whether requests must name this machine as their host, so that no other page can make a browser reach
            this one under a name of its own (DNS rebinding).
    """

    app: ASGIApp
    password: str = ""
    local: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        """Return why a request is refused, or None."""
        headers = Headers(scope=scope)
        if self.local and not is_loopback(_host(headers.get("host", ""))):
            return PlainTextResponse("This page answers to this machine only.", 403)
        if self.password and not _knows(headers.get("authorization", ""), self.password):
            return PlainTextResponse(
                "A password is needed.", 401, {"WWW-Authenticate": 'Basic realm="RMD", charset="UTF-8"'}
            )
        path = scope["path"]
        if scope["type"] != "http" or (path not in ADDRESSES and not path.startswith(FOLDERS)):
            return PlainTextResponse("There is nothing here.", 404)
        return None


def _host(header: str) -> str:
    """Return the name in a `Host` header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _knows(authorization: str, password: str) -> bool:
    """Return whether an `Authorization` header (Basic) has the password; any user name will do."""
    kind, _, code = authorization.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        given = base64.b64decode(code, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return False
    return secrets.compare_digest(given, password.encode())
