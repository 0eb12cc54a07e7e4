"""The `rmd` command: exit status, errors as one sentence, tracebacks on request, and what it imports."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rmd import __version__
from rmd.cli.app import app, main
from rmd.common.errors import RMDError

SENTENCES = [
    (RMDError("this is wrong; do that"), "this is wrong; do that"),
    (
        OSError(errno.ENOSPC, "No space left on device", "runs/a/weights"),
        "the disk is full: there is no space left for runs/a/weights; free some and run the command again",
    ),
    (
        OSError(errno.ENOSPC, "No space left on device"),
        "the disk is full: there is no space left; free some and run the command again",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "runs"), "cannot use runs: Permission denied"),
    (
        ZeroDivisionError("division\nby zero"),
        "unexpected ZeroDivisionError: division by zero; "
        "run again as rmd --debug ... for the traceback, and please report it",
    ),
]


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("rmd.cli.plan.resolved_recipe", fail)


@pytest.mark.parametrize(("error", "sentence"), SENTENCES)
def test_an_error_is_one_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    assert main(["plan", "sdxl"]) == 1
    assert capsys.readouterr() == ("", f"rmd: {sentence}\n")


@pytest.mark.parametrize("error", [error for error, _ in SENTENCES])
def test_debug_prints_the_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    assert main(["--debug", "plan", "sdxl"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last)")
    assert type(error).__name__ in printed


def test_debug_does_not_outlive_its_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(RMDError("short"), monkeypatch)
    assert [main(["--debug", "plan", "sdxl"]), main(["plan", "sdxl"])] == [1, 1]
    assert capsys.readouterr().err.endswith("\nrmd: short\n")


def test_an_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert main(["plan", "sdxl"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["plan", "sdxl"], 0), (["--version"], 0), (["--help"], 0), (["plan"], 2), (["plan", "--no"], 2)],
)
def test_exit_status(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert bool(printed.out) == (status == 0)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rmd {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "suggestion"), [(["pln"], "'plan'"), (["plan", "sdxl", "--step", "4"], "--steps")]
)
def test_a_misspelt_verb_or_option_is_suggested(
    arguments: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert suggestion in capsys.readouterr().err


def test_an_empty_name_is_not_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--recipe", "", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("rmd: there is no recipe ''; ")


def test_every_verb_has_a_help_line() -> None:
    assert app.registered_commands
    for command in app.registered_commands:
        assert command.callback is not None and command.callback.__doc__


def test_the_installed_command_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="rmd")
    assert script.load() is main


def test_a_process_that_fails(run_python) -> None:  # type: ignore[no-untyped-def]
    ended = run_python("-m", "rmd", "plan", "sdlx")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("rmd: there is no recipe 'sdlx' (did you mean 'sdxl'?); ")
    assert ended.stderr.count("\n") == 1


SLOW = ("torch", "numpy", "diffusers", "transformers", "huggingface_hub", "PIL", "matplotlib", "pyarrow", "datasets")


def test_help_imports_nothing_slow(run_python) -> None:  # type: ignore[no-untyped-def]
    """`rmd --help` answers at once because the verbs import whatever is slow inside their functions."""
    code = f"import sys; from rmd.cli.app import main; main(['--help']); print([m for m in {SLOW} if m in sys.modules])"
    assert run_python("-c", code).stdout.endswith("\n[]\n")


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("arguments", [["plan", "scenes"], ["plan", "scenes", "--json"]])
def test_a_full_disk_behind_standard_output(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", FullDisk())
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("rmd: the disk is full: ")


def test_a_reader_that_stops_early_is_no_error_message() -> None:
    command = f"{sys.executable} -u -m rmd plan scenes --json | head -n 1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("{\n", "")
