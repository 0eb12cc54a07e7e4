"""Runs a server until a signal asks it to end; then it refuses new work, finishes what it has accepted, and ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from rmd.common.web import run as run_app
from rmd.serve.app import Service


class Draining(uvicorn.Server):
    """A server that finishes accepted work after the first signal; after a second one, it waits for open requests only.

    Args:
        config: uvicorn's settings.
        service: what does the work.
        on_drain: called at the first signal.
    """

    def __init__(self, config: uvicorn.Config, service: Service, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self.service, self.on_drain = service, on_drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the event loop, and start."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; called by the signals of `uvicorn.server`."""
        if self._loop is None or self.service.scheduler.draining:
            super().handle_exit(sig, frame)
            return
        self.service.scheduler.draining = True
        self._loop.call_soon_threadsafe(self._begin, sig)

    def _begin(self, sig: int) -> None:
        self.on_drain()
        self._drain = asyncio.create_task(self.service.drained())
        self._drain.add_done_callback(lambda _: uvicorn.Server.handle_exit(self, sig, None))


def run(app: FastAPI, service: Service, listener: socket.socket, on_drain: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, and return when all accepted work is done."""
    # uvicorn sends itself the signal again at the end, which would end the process with another status than 0.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run_app(app, listener, partial(Draining, service=service, on_drain=on_drain))
    finally:
        signal.signal(signal.SIGTERM, before)
