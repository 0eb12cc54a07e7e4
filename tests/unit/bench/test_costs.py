"""`rmd bench sample`: its rows, as a table and as JSON. `rmd bench train` is tested in test_training.py."""

from __future__ import annotations

import json

import pytest

from rmd.cli.app import main

SAMPLE = ["bench", "sample", "--batch", "1", "--repeats", "1", "--teacher-steps", "2", "--device", "cpu"]


def test_sampling_is_timed_for_the_teacher_full_steps_and_the_cascade(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SAMPLE, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["teacher, 2 steps", "4 full-resolution steps", "RMD cascade"]
    assert [row["calls"] for row in rows] == [2, 4, 4] and all(row["batch"] == 1 for row in rows)
    for row in rows:
        assert row["network"] > 0 and row["overhead"] == pytest.approx(row["loop"] / row["network"] - 1)


def test_the_table_ends_with_the_speed_of_the_cascade(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SAMPLE, "--threads", "1"]) == 0
    shown = capsys.readouterr()
    last = shown.out.splitlines()[-1]
    assert last.startswith("the cascade's denoiser is ") and last.endswith("x as fast as 4 full-resolution steps")
    assert "scenes, batch 1, 1 threads; ms per picture" in shown.out and "RMD cascade: 2/2" in shown.err
