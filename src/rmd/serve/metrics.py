"""Numbers of a server for Prometheus, and a middleware that counts and times requests."""

from __future__ import annotations

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmd.serve.problems import GONE

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)


class Metrics:
    """The numbers of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory and processor time of the process
        PlatformCollector(registry=registry)
        self.requests = Counter("rmd_requests", "Answers by route and status", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "rmd_request_seconds", "Seconds to the end of an answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("rmd_queue_length", "Samples that wait for a batch", registry=registry)
        self.waited = Histogram(
            "rmd_queue_seconds", "Seconds that a sample waited for its batch", buckets=_SECONDS, registry=registry
        )
        self.batches = Histogram("rmd_batch_size", "Samples in a batch", buckets=_SIZES, registry=registry)
        self.device = Counter("rmd_device_seconds", "Seconds in which the device made samples", registry=registry)
        self.samples = Counter("rmd_samples", "Samples by model", ["model"], registry=registry)
        self.failures = Counter("rmd_failed_batches", "Batches that failed, by reason", ["reason"], registry=registry)
        self.dropped = Counter(
            "rmd_dropped_requests", "Requests given up before they were done, by reason", ["reason"], registry=registry
        )

    def text(self) -> bytes:
        """Return all numbers in Prometheus's text format."""
        return generate_latest(self.registry)


class Measured:
    """Middleware that counts answers by route and status, and times them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), GONE

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # paths that clients invent are not labels
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
