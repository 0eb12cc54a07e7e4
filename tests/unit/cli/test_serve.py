"""`rmd serve`: what it prints, and one sentence for each error, before weights are loaded where that is possible."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from families import make_student
from serving import served

from rmd.cli.app import main
from rmd.cli.serve import _greeting
from rmd.models.student import read_student
from rmd.serve.batching import Shape
from rmd.serve.engine import Served

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"), "sdxl", "lora")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RMD_API_KEY", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["empty"], "empty holds no student: it has no rmd_config.json"),
        (["a b=empty"], "'a b=empty': a student's name has letters, digits, _, - and .: give one by NAME=STUDENT"),
        (["x=empty", "x=empty"], "two students have the name x: give them other names by NAME=STUDENT"),
        (["empty", "--size", "64"], "'64' is not a size: write it as WIDTHxHEIGHT, such as 1024x1024"),
        (
            ["empty", "--max-n", "5", "--max-queue", "4"],
            "a request may ask for 5 pictures, but the queue has",
        ),
        (["empty", "--store", "file"], f"cannot write to {Path('file/servers')}: Not a directory"),
        (["empty", "--device", "cuda:99"], "there is no cuda:99, since torch finds"),
        (["empty", "--host", "203.0.113.1"], "cannot listen at 203.0.113.1, port 0: Cannot assign requested address"),
        (["empty\ud800"], "the command line contains a character that is not valid Unicode"),
    ],
)
def test_one_sentence_for_each_error(arguments: list[str], sentence: str, work: Path, capsys: Captured) -> None:
    assert main(["serve", "--port", "0", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"rmd: {sentence}") and err.count("\n") == 1
    assert sorted(path.name for path in work.iterdir()) == ["empty", "file"]


def test_a_taken_port(capsys: Captured) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "empty", "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"rmd: cannot listen at 127.0.0.1, port {port}: Address already in use; choose another --port\n"
    )


@pytest.mark.parametrize("key", ["", " ", "short", "with a space", "schlüssel-der-lang-ist", "x" * 501])
def test_a_key_that_no_client_can_send(key: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("RMD_API_KEY", key)
    assert main(["serve", "empty", "--port", "0"]) == 1
    err = capsys.readouterr().err
    assert err == "rmd: RMD_API_KEY cannot be a key: use 8 to 500 ASCII characters without spaces, or unset it\n"


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("rmd.cli.serve.find_spec", lambda name: None if name == "fastapi" else object())
    assert main(["serve", "empty"]) == 1
    assert capsys.readouterr().err == "rmd: the server needs more packages (fastapi): pip install 'rmd[serve]'\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["empty", "--port", "70000"], ["empty", "--max-batch", "0"], ["empty", "--max-wait", "-1"],
     ["empty", "--timeout", "0"], ["empty", "--keep", "0"], ["empty", "--api-key", "secret"]],
)  # fmt: skip
def test_wrong_options(arguments: list[str], capsys: Captured) -> None:
    assert main(["serve", *arguments]) == 2
    assert capsys.readouterr().err


def test_what_it_says_and_the_command_that_it_offers(student: Path, work: Path) -> None:
    with served(f"demo={student}", "--size", "48x32", "--host", "127.0.0.1", out=work / "log") as server:
        printed = (work / "log.out").read_text(encoding="utf-8").splitlines()
        assert printed[0] == "demo: pictures, 32x32 or 48x32, 2+2 steps, cpu in float32"
        assert printed[1] == f"serving at {server.url}/v1   (no API key; Ctrl-C ends)"
        command = shlex.split(printed[2].removeprefix("try: "))
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert re.match(r'\{"created":\d+,"data":\[\{"b64_json":"iVBORw0KGgo', answer.stdout)
        assert (work / "log.err").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(
    ("key", "local", "sentence"),
    [
        (None, True, "no API key; Ctrl-C ends"),
        (None, False, "no API key: everyone who reaches this address can use it; set RMD_API_KEY; Ctrl-C ends"),
        ("a-secret-key", False, "requests need the API key in RMD_API_KEY; Ctrl-C ends"),
    ],
)
def test_it_says_whether_a_key_is_needed(key: str | None, local: bool, sentence: str, student: Path) -> None:
    shape = Shape("demo", 32, 32)
    students = {"demo": Served("demo", "rmd", read_student(student), (shape,), moving=True)}
    text = _greeting("http://[::]:80", students, key, local=local)
    assert text.startswith(f"serving at http://[::]:80/v1   ({sentence})") and "/v1/videos" in text
    assert "a-secret-key" not in text and ('"Authorization: Bearer $RMD_API_KEY"' in text) == (key is not None)
