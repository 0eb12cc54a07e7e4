"""`rmd eval vbench`: from the list of prompts to the totals."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from benchmarks import fake_vbench, write_info, write_videos

from rmd.cli.app import main
from rmd.sample.plans import read_plan
from rmd.scores.vbench import DIMENSIONS

Captured = pytest.CaptureFixture[str]
SIZES = {"temporal_flickering": 1, "color": 1}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plan_check_and_run(work: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    info = write_info(work, SIZES).name
    assert main(["eval", "vbench", "plan", info, "--out", "plan.json", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "plan: plan.json   VBench: 2 prompts, 30 videos",
        "make them with: rmd generate --model DIR --plan plan.json --out VIDEOS",
    ]
    assert err == f"note: VBench's list has 946 prompts, and {info} has 2\n"
    plan = read_plan(Path("plan.json"))
    assert plan.videos[0].seed == 3
    write_videos(plan, Path("videos"), settings=True)
    assert main(["eval", "vbench", "check", "plan.json", "videos"]) == 0
    assert capsys.readouterr().out == "complete: 30 videos\n"
    for name, value in fake_vbench(work / "package").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STILL", "4")
    command = ["eval", "vbench", "run", "plan.json", "--info", info, "--python", sys.executable, "--videos", "videos"]
    assert main([*command, "--out", "out"]) == 0
    out, err = capsys.readouterr()
    assert (
        out == f"2 dimensions in out; print the totals with: rmd eval vbench report {Path('out')}/*_eval_results.json\n"
    )
    assert "note: 1 of 1 prompts of temporal flickering have fewer than 5 videos that stand still" in err
    assert main([*command, "--out", "out", "--dimensions", "color"]) == 0
    assert main([*command, "--out", "out", "--dimensions", "scene"]) == 1
    assert capsys.readouterr().err.endswith(
        "rmd: the plan has no videos of scene: it has those of temporal_flickering, color\n"
    )


def test_what_a_folder_lacks_is_said(work: Path, capsys: Captured) -> None:
    main(["eval", "vbench", "plan", write_info(work, SIZES).name, "--out", "plan.json"])
    plan = read_plan(Path("plan.json"))
    write_videos(plan.below(["color"]), Path("videos"))
    Path("videos/color/more.mp4").touch()
    capsys.readouterr()
    assert main(["eval", "vbench", "check", "plan.json", "videos"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "missing: temporal_flickering/temporal flickering, number 0-0.mp4"
    assert lines[10:] == ["missing: 15 more", "superfluous: color/more.mp4"]
    assert err == (
        "rmd: videos is not what the plan says: of its 30 videos, 25 are missing and 0 have another prompt or seed, "
        "and 1 files are superfluous\n"
    )


def test_one_sentence_and_nothing_written(work: Path, capsys: Captured) -> None:
    info = write_info(work, SIZES).name
    main(["eval", "vbench", "plan", info, "--out", "plan.json"])
    capsys.readouterr()
    before = sorted(work.rglob("*"))
    run = ["run", "plan.json", "--info", info, "--videos", "videos", "--out", "out", "--python"]
    for arguments, sentence in (
        (["plan", "nothing.json", "--out", "p.json"], "there is no file nothing.json"),
        (
            ["plan", info, "--out", "p.json", "--dimensions", "colour"],
            "unknown dimension 'colour' (did you mean 'color'",
        ),
        (["check", "nothing.json", "videos"], "there is no file nothing.json"),
        (["check", info, "videos"], f"{info}: should be a group of keys, but is "),
        (["check", "plan.json", "videos"], "there is no folder videos: name the one that has the plan's videos"),
        ([*run, "nothing"], "there is no folder videos: name the one that has the plan's videos"),
        (["report", "nothing.json"], "there is no file nothing.json"),
    ):
        assert main(["eval", "vbench", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("rmd: ") and sentence in error and error.count("\n") == 1, error
    assert sorted(work.rglob("*")) == before


def test_totals_of_vbench(capsys: Captured, work: Path) -> None:
    for each in DIMENSIONS:
        (work / f"{each.name}.json").write_text(json.dumps({each.name: [each.high, []]}), encoding="utf-8")
    names = [f"{each.name}.json" for each in DIMENSIONS]
    assert main(["eval", "vbench", "report", *names, "--out", "totals.json"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    rows = {" ".join(re.findall("[a-z]+", line)): line.split()[-1] for line in lines}
    assert rows["total"] == rows["quality"] == rows["scene"] == "100.00"
    assert json.loads(Path("totals.json").read_text(encoding="utf-8"))["total"] == pytest.approx(1)
    assert main(["eval", "vbench", "report", *names[1:]]) == 1
    assert capsys.readouterr().err.startswith("rmd: VBench's totals need all 16 dimensions, and 1 are missing: subject")
