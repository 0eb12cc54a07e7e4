"""Students of the packaged teachers, and servers of them in processes of their own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from openai import OpenAI
from processes import start

from rmd.models.student import save_student
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe

PROMPTS = (
    "a big red striped ball on the left, at sunset",
    "a small blue plain box in the middle, on sand",
    "a green star on wood",
    "a white ring by the sea",
)


def packaged_student(folder: Path, recipe: str = "scenes") -> Path:
    """Save a student of a packaged teacher that has not been trained yet: it draws scenes, though in few steps."""
    settings = load_recipe(recipe)
    backbone = load_teacher(settings)
    state = {name: tensor.detach().clone() for name, tensor in backbone.denoiser.named_parameters()}
    return save_student(backbone, state, settings, folder / recipe)


class Served:
    """A server in a process of its own.

    Attributes:
        process: the process.
        url: its address.
        out: what it prints goes to files of this name, with the ends .out and .err.
    """

    def __init__(self, process: BaseProcess, url: str, out: Path) -> None:
        self.process, self.url, self.out = process, url, out

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        """Return OpenAI's own client of the server, which does not try again unless it is told to."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 60.0, **options})

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
        """Send a request, an object as JSON, and return status, headers and content of the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = self.ask("GET", "/metrics")[2].decode()
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"there is no metric {name}"
        return sum(map(float, found))

    def errors(self) -> str:
        """Return what it wrote to standard error."""
        return self.out.with_suffix(".err").read_text(encoding="utf-8")


@contextmanager
def served(*arguments: str | Path, out: Path, **variables: str) -> Iterator[Served]:
    """Run `rmd serve` during the block, at a free port unless the arguments name one."""
    port = () if "--port" in arguments else ("--port", "0")
    process = start("-m", "rmd", "serve", *map(str, arguments), *port, "--threads", "1", out=out, **variables)
    try:
        for _ in range(1200):
            text = out.with_suffix(".out").read_text(encoding="utf-8") if out.with_suffix(".out").exists() else ""
            if found := re.search(r"serving at (\S+)/v1", text):
                break
            assert process.is_alive(), out.with_suffix(".err").read_text(encoding="utf-8")
            time.sleep(0.05)
        server = Served(process, found[1] if found else "", out)
        while server.ask("GET", "/health")[0] != 200:
            time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.join()
