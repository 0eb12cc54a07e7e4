"""Progress lines where there is no terminal: a line every tenth, with honest times."""

from __future__ import annotations

import pytest

from rmd.cli.progress import progress_bar


def test_a_line_every_tenth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr("rmd.cli.progress.time.monotonic", lambda: now[0])
    with progress_bar() as report:
        for done in range(1, 41):
            now[0] += 2.0
            report("training", done, 40)
        now[0] += 6.0
        report("sampling", 3, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 4/40, 8 s, 72 s left"
    assert lines[9] == "training: 40/40, 80 s, 0 s left"
    assert lines[10:] == ["sampling: 3/4, 6 s, 2 s left"]
