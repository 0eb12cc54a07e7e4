"""What a user reads when the Hub refuses: a server on this machine answers as the Hub does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from rmd.backbones import load_backbone
from rmd.errors import RMDError
from rmd.export.student import read_student
from rmd.hub import hub_errors

SCRIPT = """
import sys
from rmd.backbones import load_backbone
from rmd.errors import RMDError
from rmd.export.student import read_student
for source in sys.argv[1:]:
    for load in (load_backbone, read_student):
        try:
            load(source)
        except RMDError as error:
            print(error)
"""
GATED = (
    "a/gated is gated: accept its licence at https://huggingface.co/a/gated, then log in with `hf auth login` "
    "and run this again"
)
ABSENT = (
    "there is no an/absent, neither a folder nor a repository on the Hub that you may read: check the name, or log in "
    "with `hf auth login` if it is private"
)
UNREACHED = (
    "a/model is no folder and not in the cache of the Hub, which cannot be reached: go online (is HF_HUB_OFFLINE "
    "set?), or give a folder"
)


ConnectError = type("ConnectError", (Exception,), {"__module__": "httpx2"})


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.removeprefix("/api/models")
        status, code = 401, "RepoNotFound"
        if path.startswith("/a/gated"):
            status, code = 403, "GatedRepo"
        if path.startswith("/an/empty"):
            status, code = 404, "EntryNotFound"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def complaints(sources: list[str], folder: Path, endpoint: str) -> list[str]:
    without_proxies = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sources],
        env=without_proxies | {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint},
        capture_output=True, text=True, check=True, cwd=folder,
    )  # fmt: skip
    return found.stdout.strip().splitlines()


def test_what_the_hub_refuses_is_one_sentence(hub: str, tmp_path: Path) -> None:
    found = complaints(["a/gated", "an/absent", "an/empty", "no/such/folder"], tmp_path, hub)
    assert found == [
        *[GATED] * 2,
        *[ABSENT] * 2,
        "the Hub's an/empty holds no pipeline: check the name",
        "the Hub's an/empty holds no student: check the name",
        *["there is no folder no/such/folder, and a repository on the Hub cannot be called so: check the name"] * 2,
    ]


@pytest.mark.parametrize("load", [load_backbone, read_student])
def test_offline_and_not_in_the_cache(load: Callable[[str], object]) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # as for all tests
    with pytest.raises(RMDError) as caught:
        load("a/model")
    assert str(caught.value) == UNREACHED


@pytest.mark.parametrize("cause", [ConnectError("refused"), LocalEntryNotFoundError("none"), ConnectionError()])
def test_no_connection_whoever_noticed(cause: Exception) -> None:
    with pytest.raises(RMDError, match=re.escape(UNREACHED)), hub_errors("a/model", "the pipeline"):
        raise OSError("cannot load; see above") from cause


def test_a_folder_that_does_not_load_says_what_the_library_says(tmp_path: Path) -> None:
    expected = f"^cannot load the pipeline {tmp_path}: no weights$"
    with pytest.raises(RMDError, match=expected), hub_errors(tmp_path, "the pipeline"):
        raise OSError("no weights\nand a long story")
