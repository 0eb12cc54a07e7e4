"""A client of ComfyUI's server, which runs workflows over HTTP and reads their latents back."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load

NODES = Path(__file__).parents[2] / "integrations" / "comfyui"
START, RUN = 300, 120
"""Longest wait in seconds for the server, and for one prompt."""


class Refused(Exception):
    """The server's own words about a prompt that it did not run to its end."""


@dataclass
class Server:
    """A running server, and its folder."""

    url: str
    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def ask(self, path: str, values: Any = None) -> bytes:
        """Return the answer to a GET request, or with values to a POST request."""
        data = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=RUN) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from error

    def run(self, prompt: dict[str, Any]) -> list[dict[str, Any]]:
        """Run a workflow in the API's format, and return the files that its nodes saved."""
        return self.wait(self.submit(prompt))

    def submit(self, prompt: dict[str, Any], client: str = "") -> str:
        """Queue a workflow, and return its number; the client, if any, is told of its progress."""
        return str(json.loads(self.ask("/prompt", {"prompt": prompt, "client_id": client}))["prompt_id"])

    def wait(self, number: str) -> list[dict[str, Any]]:
        """Return the files that a workflow's nodes saved; raise Refused if it did not end well."""
        end = time.monotonic() + RUN
        while time.monotonic() < end:
            history = json.loads(self.ask(f"/history/{number}")).get(number)
            if history is None:
                time.sleep(0.05)
            elif history["status"]["status_str"] != "success":
                raise Refused(json.dumps(history["status"]["messages"]))
            else:
                kinds = (kind for output in history["outputs"].values() for kind in output.values())
                return [each for files in kinds for each in files if isinstance(each, dict)]
        raise TimeoutError(f"the prompt took longer than {RUN} s")

    def latents(self, prompt: dict[str, Any], sampler: str) -> Any:
        """Run a workflow whose node `sampler` gives latents, and return them."""
        prompt = copy.deepcopy(prompt)
        name = f"test{next(self._numbers)}"
        prompt["save"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": name}}
        (saved,) = self.run(prompt)
        return load(self.ask(f"/view?filename={saved['filename']}&type=output"))["latent_tensor"]


@contextmanager
def running(comfyui: Path, folder: Path) -> Iterator[Server]:
    """Run ComfyUI on the CPU, with RMD's nodes and those of the tests in its folder.

    Args:
        comfyui: the sources of ComfyUI.
        folder: its models, inputs and outputs.
    """
    nodes = folder / "custom_nodes"
    shutil.copytree(NODES, nodes / "rmd")
    shutil.copytree(Path(__file__).parent / "nodes_for_tests", nodes / "nodes_for_tests")
    models = ("models/rmd_students", "models/loras", "models/diffusion_models")
    for name in ("input", "output", "user", "frontend", *models):
        (folder / name).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        os.environ.get("COMFYUI_PYTHON") or sys.executable, "main.py", "--cpu", "--fp32-unet", "--port", str(port),
        "--base-directory", str(folder), "--front-end-root", str(folder / "frontend"), "--disable-api-nodes",
        "--database-url", "sqlite:///:memory:", "--preview-method", "latent2rgb",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=comfyui, env=environment, stdout=log, stderr=subprocess.STDOUT)
    started = Server(f"http://127.0.0.1:{port}", folder)
    try:
        _wait(started, process)
        yield started
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Return when the server answers; if it ended instead, raise an error with what it printed."""
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            server.ask("/system_stats")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)
        else:
            return
    raise RuntimeError("ComfyUI did not start:\n" + (server.folder / "log").read_text()[-4000:])
