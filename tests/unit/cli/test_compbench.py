"""`rmd eval compbench`: from the lists of prompts to the means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import result_csv, write_prompts, write_videos

from rmd.cli.app import main
from rmd.cli.compbench import _by_name, _words
from rmd.common.errors import RMDError
from rmd.sample.plans import read_plan
from rmd.scores.compbench import CATEGORIES

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plan_and_check(work: Path, capsys: Captured) -> None:
    write_prompts(work / "prompts")
    assert main(["eval", "compbench", "plan", "prompts", "--out", "plan.json"]) == 0
    assert capsys.readouterr().out.startswith("plan: plan.json   T2V-CompBench, version 1: 700 prompts, 700 videos\n")
    write_videos(read_plan(Path("plan.json")), Path("videos"))
    assert main(["eval", "compbench", "check", "plan.json", "videos"]) == 0
    assert capsys.readouterr().out == "complete: 700 videos\n"
    command = ["eval", "compbench", "run", "plan.json", "--checkout", "c", "--videos", "videos", "--out", "out"]
    assert main([*command, "--python", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("rmd: nothing is not a program: give --python the interpreter ")
    assert main([*command, "--python", "dott=x"]) == 1
    assert capsys.readouterr().err.startswith("rmd: unknown tool 'dott' (did you mean 'dot'?)")
    assert main([*command, "--python", "x", "--arguments", "eval.py=a"]) == 1
    assert capsys.readouterr().err.startswith("rmd: unknown script 'eval.py'")
    assert not Path("out").exists()


def test_means_and_what_is_missing(capsys: Captured) -> None:
    names = []
    for category in CATEGORIES:
        for ending in category.results:
            size, head = 100 // len(category.results), "id,x,y,Score_1" if len(category.results) > 1 else "a,b,c,Score"
            names.append(f"mine{ending}")
            Path(names[-1]).write_text(result_csv([1.0] * size, head=head), encoding="utf-8")
    assert main(["eval", "compbench", "report", *names, "--out", "means.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (average,) = (line for line in lines if "average" in line)
    assert average.split()[-1] == "0.6000" and any("T2V-CompBench, version 1" in line for line in lines)
    found = json.loads(Path("means.json").read_text(encoding="utf-8"))
    assert found["average"] == pytest.approx((0 + 1 + 1 + 1 + 0.2 + 0 + 1) / 7) and found["edition"] == 1
    assert main(["eval", "compbench", "report", *names[1:]]) == 1
    assert capsys.readouterr().err == (
        "rmd: T2V-CompBench's average needs all 7 categories, and 1 are missing: consistent_attr\n"
    )


def test_values_by_name() -> None:
    assert _by_name(["dot=a=b", "c"], "--python", default="") == {"dot": "a=b", "": "c"}
    assert _words("--model-path '/a b' -x 1") == ["--model-path", "/a b", "-x", "1"]
    for texts in (["a"], ["a="]):
        with pytest.raises(RMDError, match=r"^--arguments a=?: write it as NAME=VALUE$"):
            _by_name(texts, "--arguments")
    with pytest.raises(RMDError, match=r"^--python names an interpreter for all others twice: leave out one of them$"):
        _by_name(["a", "b"], "--python", default="")
    with pytest.raises(
        RMDError, match=r"^--arguments 'a: its words cannot be told \(no closing quotation\); close the quotation$"
    ):
        _words("'a")
