"""The health of a server whose device is broken, seen through its HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from rmd.sample.samplers import Media
from rmd.serve.app import Service, make_app
from rmd.serve.batching import Shape
from rmd.serve.engine import AfterStep, Served
from rmd.serve.limits import Limits
from rmd.serve.problems import Problem
from rmd.serve.store import Store


class Broken:
    """A device after an error that only a restart mends."""

    def __init__(self) -> None:
        self.students: dict[str, Served] = {}

    def sample(self, shape: Shape, prompts: Sequence[str], seeds: Sequence[int], after_step: AfterStep) -> list[Media]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_server_whose_batches_all_fail_is_not_healthy(tmp_path: Path) -> None:
    service = Service(Broken(), Store(tmp_path, keep=10, most=10**6), Limits(max_wait=0.0))
    app: FastAPI = make_app(service)

    async def fail() -> int:
        items = service.scheduler.submit(Shape("toy", 1, 1), "a", [0])
        result = await asyncio.gather(service.scheduler.result(items, 10), return_exceptions=True)
        assert isinstance(result[0], Problem)
        return result[0].status

    with TestClient(app) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        assert client.portal is not None
        assert [client.portal.call(fail) for _ in range(10)] == [500] * 10
        answer = client.get("/health")
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "broken"
        assert client.get("/metrics").text.count('rmd_failed_batches_total{reason="error"} 10.0') == 1
