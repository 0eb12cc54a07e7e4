"""Progress: a line after every tenth with correct times, or a bar on a terminal."""

from __future__ import annotations

import errno
import io

import pytest

from rmd.cli.progress import progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the current time, which tests advance, in a list."""
    now = [100.0]
    monkeypatch.setattr("rmd.cli.progress.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make standard error look like a terminal."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)


def test_a_line_every_tenth(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        for done in range(1, 41):
            clock[0] += 2.0
            report("training", done, 40)
        clock[0] += 6.0
        report("sampling", 3, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 4/40, 8 s, 72 s left"
    assert lines[9] == "training: 40/40, 80 s, 0 s left"
    assert lines[10:] == ["sampling: 3/4, 6 s, 2 s left"]


def test_another_piece_of_the_same_name_begins_anew(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        for total, seconds in ((2, 3.0), (4, 2.0)):
            for done in range(1, total + 1):
                clock[0] += seconds
                report("training", done, total)
            clock[0] += 5.0
            report("sampling", 1, 2)
            report("sampling", 2, 2)
    assert capsys.readouterr().err.splitlines() == [
        "training: 1/2, 3 s, 3 s left",
        "training: 2/2, 6 s, 0 s left",
        "sampling: 1/2, 5 s, 5 s left",
        "sampling: 2/2, 5 s, 0 s left",
        "training: 1/4, 2 s, 6 s left",
        "training: 2/4, 4 s, 4 s left",
        "training: 3/4, 6 s, 2 s left",
        "training: 4/4, 8 s, 0 s left",
        "sampling: 1/2, 5 s, 5 s left",
        "sampling: 2/2, 5 s, 0 s left",
    ]


def test_what_an_earlier_process_did_took_no_time_here(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        for done in range(31, 41):
            clock[0] += 2.0
            report("training", done, 40, start=30, note="fine")
    assert capsys.readouterr().err.splitlines() == [
        "training: 32/40, 4 s, 16 s left, fine",
        "training: 36/40, 12 s, 8 s left, fine",
        "training: 40/40, 20 s, 0 s left, fine",
    ]


def test_a_bar_on_a_terminal(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        report("training", 20, 40, note="student loss 0.25")
    shown = capsys.readouterr().err
    for words in ("training", "20/40", "student loss 0.25", "left"):
        assert words in shown


def test_a_bar_begins_anew_on_a_terminal(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as report:
        report("training", 40, 40)
        report("training", 3, 8)
    assert "3/8" in capsys.readouterr().err


def test_nobody_to_be_told_stops_no_work(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    with progress_bar() as report:
        for done in range(1, 5):
            report("training", done, 4)
