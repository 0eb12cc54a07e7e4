"""The command ends quietly, or in one sentence, when its output, its folder or its memory fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rmd.cli.app import main
from rmd.cli.ending import sentence
from rmd.common.errors import RMDError

RMD = f"{sys.executable} -m rmd"


def shell(command: str, **variables: str) -> tuple[int, str, str]:
    """Return the status and the outputs of a bash command line, in which `rmd` is the command."""
    script = f'set -o pipefail; rmd() {{ {RMD} "$@"; }}; {command}'
    ended = subprocess.run(
        ["bash", "-c", script], capture_output=True, env={**os.environ, **variables}, timeout=120
    )  # fmt: skip
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


FULL = "rmd: the disk is full: there is no space left; free some and run the command again\n"


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("rmd --help >&-", (0, "", "")),
        ("rmd plan scenes <&- >&- 2>&-", (0, "", "")),
        ("rmd plan nonsense 2>&-", (1, "", "")),
        ("rmd plan nonsense 2>/dev/full", (1, "", "")),
        ("rmd plan scenes >/dev/full", (1, "", FULL)),
        ("rmd --version >/dev/full", (1, "", FULL)),
        ("rmd --help | true", (1, "", "")),
    ],
)
def test_standard_streams_that_fail(command: str, ending: tuple[int, str, str]) -> None:
    assert shell(command) == ending


def test_an_encoding_without_lines_and_boxes() -> None:
    status, out, err = shell("rmd plan scenes", PYTHONIOENCODING="ascii")
    assert (status, err) == (0, "") and "1 |     1 | 32x32 |" in out and out.endswith("(1.60x less)\n")
    assert shell("rmd plan scenes", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") == (status, out, err)


@pytest.mark.parametrize("columns", ["0", "1", "99999999999", "x"])
def test_a_terminal_of_any_width(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["plan", "scenes"]) == 0
    assert " 1       1   32x32         1000.0       1000.0     -inf    1.00   0.25" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["plan", "\udce9"], ["plan", "./\udce9.yaml"], ["plan", "scenes", "--set", "teacher=\udce9"]]
)
def test_a_name_that_is_not_utf8(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert "udce9" in capsys.readouterr().err.lower()


def test_a_folder_that_has_been_removed(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    status, out, err = shell(f"mkdir {folder}; cd {folder}; rmdir {folder}; rmd plan scenes")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("rmd: the current folder has been removed: change to another one")


def test_an_interruption_while_python_imports() -> None:
    code = """
import builtins
usual = builtins.__import__
def load(name, *rest, **more):
    if name == "rmd.cli.plan":
        raise KeyboardInterrupt
    return usual(name, *rest, **more)
builtins.__import__ = load
import rmd.__main__
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's own exception."""


LESS = "use a smaller batch, smaller sides, fewer frames or half precision, or a machine with more memory"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RMDError("a\nb"), "a b"),
        (RMDError("a\x1b[31m b\x00 \udce9 \u202e"), "a\\x1b[31m b\\x00 \\udce9 \\u202e"),
        (MemoryError(), f"there is not enough memory: {LESS}"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), f"there is not enough memory: {LESS}"),
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            f"there is not enough memory: {LESS} (CUDA out of memory. Tried to allocate 2 GiB)",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            f"there is not enough memory: {LESS} "
            "(DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes)",
        ),
        (
            RecursionError("maximum recursion depth exceeded"),
            "a file or setting is nested too deeply: check those that were given",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), None),
        (OSError(errno.EIO, "Input/output error"), "a file cannot be read or written: Input/output error"),
        (OSError("no file named x"), "a file cannot be read or written: no file named x"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), "a file is not UTF-8 text (at byte 0): save it as UTF-8"),
        (
            UnicodeEncodeError("utf-8", "a\udce9", 1, 2, "x"),
            "'\\udce9' cannot be encoded: use names without it",
        ),
        (
            ValueError("embedded null byte"),
            "a name or path contains a NUL character: remove it",
        ),
        (
            ModuleNotFoundError("No module named 'x'"),
            "a Python package is missing or damaged (No module named 'x'): install RMD again",
        ),
    ],
)  # fmt: skip
def test_one_sentence(error: Exception, said: str | None) -> None:
    text = sentence(error)
    assert len(text) < 500 and "unexpected" not in text
    assert text == said or said is None
