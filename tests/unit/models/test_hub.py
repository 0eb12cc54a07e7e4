"""The errors for repositories that the Hub refuses, with a local server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from families import TINY
from huggingface_hub.errors import LocalEntryNotFoundError

from rmd.common.errors import RMDError
from rmd.models import load_backbone
from rmd.models.hub import check_weights, hub_errors, read_object
from rmd.models.student import read_student

SCRIPT = """
from rmd.models import load_backbone
from rmd.common.errors import RMDError
from rmd.models.resolve import resolve_noise
from rmd.models.student import read_student
from rmd.recipes.schema import load_recipe
for source in ("a/gated", "an/absent", "an/empty", "no/such/folder"):
    for load in (load_backbone, read_student):
        try:
            load(source)
        except RMDError as error:
            print(error)
for source in ("owner/whole", "owner/half", "owner/foreign"):
    try:
        print(resolve_noise(load_recipe("pixart", [f"teacher={source}", "noise=teacher"])).noise.kind, end=" ")
        backbone = load_backbone(source)
        print(type(backbone).__name__, backbone.pipe.config._name_or_path)
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
    "a/model is neither a folder nor in the cache of the Hub, and the Hub cannot be reached: go online (is "
    "HF_HUB_OFFLINE set?), or give a folder"
)


ConnectError = type("ConnectError", (Exception,), {"__module__": "httpx2"})


COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Refuses names by their beginning; for others, serves the files in the folder `repositories`."""

    repositories: Path | None = None

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/api/models").strip("/")
        owner, name, *rest = [*path.split("/"), "", ""]
        folder = None if self.repositories is None else self.repositories / owner / name
        if folder is not None and folder.is_dir():
            self._answer(folder, [part for part in rest if part])
            return
        path = f"/{path}"
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

    def _answer(self, folder: Path, rest: list[str]) -> None:
        """Answer for a repository, for its list of files, or for a file in it."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in paths]
        about: object = {"id": "x", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        if rest[:1] == ["tree"]:
            about = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _digest(path)}
                for name, path in zip(names, paths, strict=True)
            ]
        content = json.dumps(about).encode()
        self.send_response(200 if rest[:1] != ["resolve"] or (folder / "/".join(rest[2:])).is_file() else 404)
        if rest[:1] == ["resolve"]:
            path = folder / "/".join(rest[2:])
            content = path.read_bytes() if path.is_file() else b""
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Error-Code" if not path.is_file() else "ETag", _digest(path))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest() if path.is_file() else "EntryNotFound"


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def without_proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}


SPY = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n\nclass X: pass\n"


@pytest.fixture(scope="module")
def answers(hub: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a folder with three repositories and the cache into which a process downloaded them, and what it printed.

    It is one process for all tests, since its imports take seconds.
    """
    folder = tmp_path_factory.mktemp("hub")
    whole, half, foreign = (folder / "hub" / "owner" / name for name in ("whole", "half", "foreign"))
    TINY["pixart"]().pipe.save_pretrained(whole)
    for copy in (half, foreign):
        shutil.copytree(whole, copy)
    for path in half.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    index = foreign / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"transformer": ["my_module", "X"]}))
    for place in (foreign, foreign / "transformer"):
        (place / "my_module.py").write_text(SPY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hub, "repositories", folder / "hub")
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=without_proxies() | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub},
            capture_output=True, text=True, check=True, cwd=folder,
        )  # fmt: skip
    return folder, process.stdout.strip().splitlines()


def test_what_the_hub_refuses_is_one_sentence(answers: tuple[Path, list[str]]) -> None:
    sentences = answers[1][:8]
    assert sentences == [
        *[GATED] * 2,
        *[ABSENT] * 2,
        "the Hub's an/empty holds no pipeline: check the name",
        "the Hub's an/empty holds no student: check the name",
        *["there is no folder no/such/folder, and a repository on the Hub cannot have this name: check the name"] * 2,
    ]


@pytest.mark.parametrize("load", [load_backbone, read_student])
def test_a_repository_that_is_not_in_the_cache_is_an_error_offline(load: Callable[[str], object]) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # set for all tests
    with pytest.raises(RMDError) as caught:
        load("a/model")
    assert str(caught.value) == UNREACHED


@pytest.mark.parametrize("cause", [ConnectError("refused"), LocalEntryNotFoundError("none"), ConnectionError()])
def test_a_failed_connection_is_recognised_in_every_library(cause: Exception) -> None:
    with pytest.raises(RMDError, match=re.escape(UNREACHED)), hub_errors("a/model", "the pipeline"):
        raise OSError("cannot load; see above") from cause


def test_the_error_for_a_folder_quotes_the_library(tmp_path: Path) -> None:
    expected = f"^cannot load the pipeline {tmp_path}: no weights$"
    with pytest.raises(RMDError, match=expected), hub_errors(tmp_path, "the pipeline"):
        raise OSError("no weights\nand a long story")


def test_repositories_load_as_a_whole_or_in_their_only_variant_and_never_with_code(
    answers: tuple[Path, list[str]],
) -> None:
    folder, said = answers[0], answers[1][8:]
    assert said[:2] == [f"vp PixArtBackbone owner/{name}" for name in ("whole", "half")]
    assert re.match(
        r"vp model_index\.json of owner/foreign: transformer is \['my_module', 'X'\], which is not a class of the",
        said[2],
    )
    home = folder / "home"
    assert not list(home.rglob("my_module.py")) and not list(folder.rglob("ran"))
    assert {path.name for path in home.rglob("*.safetensors")} == {
        "model.safetensors", "model.fp16.safetensors", "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    }  # fmt: skip


def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(RMDError, match=r"^there is no file .*x\.safetensors$"):
        check_weights(path)
    path.mkdir()
    with pytest.raises(RMDError, match=r"^cannot read .*x\.safetensors: Is a directory$"):
        check_weights(path)
    wrong = tmp_path / "config.json"
    for text, sentence in {
        "{": "is not valid JSON",
        "3": "should contain a JSON object",
        None: "there is no file",
    }.items():
        wrong.unlink(missing_ok=True)
        if text is not None:
            wrong.write_text(text)
        with pytest.raises(RMDError, match=sentence):
            read_object(wrong)
