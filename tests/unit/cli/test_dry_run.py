"""`rmd train --dry-run`: describes the run, meets what is in its way, and writes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY
from helpers import PROMPTS

from rmd.bench.memory import recipe_memory
from rmd.cli.app import main
from rmd.cli.dry_run import batch_line, calls_line, memory_line
from rmd.cli.train import prepare
from rmd.recipes.schema import load_recipe
from rmd.train.parallel import Parallel

Captured = pytest.CaptureFixture[str]


def written() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def test_a_dry_run(recipe: Path, capsys: Captured) -> None:
    assert main(["train", str(recipe), "--dry-run"]) == 0
    count = sum(parameter.numel() for parameter in TINY["pixart"]().denoiser.parameters())
    plan, trainable, prompts, calls, batch, memory, disk, time, tried, size = capsys.readouterr().out.splitlines()
    assert plan.startswith("tiny: 16x16 at 1000, 857 -> ")
    assert trainable == f"trainable parameters: student {count:,}, fake score {count:,} (mode full)"
    assert prompts.startswith(f"prompts: {len(PROMPTS)} of ")
    assert calls == (
        "network calls per iteration: student 1 to 4 (2.5 on average), "
        "teacher 1 (with guidance: twice the batch), fake score 3"
    )
    assert batch == "batch 2: 2 samples at once"
    assert re.match(r"memory: about \d+\.\d GB on a GPU, of which the update of the (student|fake score) takes", memory)
    assert re.match(r"time: [\d.]+ s per iteration here, 0:0\d:\d\d in all", time)
    assert re.match(r"disk: about [\d.]+ MB per checkpoint, of which 2 are kept, and [\d.]+ MB for the stu", disk)
    assert tried.startswith(f"tried: {len(PROMPTS)} prompts tokenized, every step trained, pictures made; the student")
    assert size == "6 iterations of batch 2 into runs/tiny"
    assert written() == []


def test_a_dry_run_meets_what_is_in_the_way_of_the_run(recipe: Path, capsys: Captured) -> None:
    assert main(["train", str(recipe), "--set", "train.iterations=1"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    Path("file").touch()
    for more, sentence in {
        (): "runs/tiny holds a run already: add --resume",
        ("--out", "file/run"): f"cannot write to file/run: {Path('file').absolute()} is a file; choose another --out",
        ("--out", "new", "--resume"): "nothing to resume in new",
        ("--set", "train.loggers=[wandb]", "--out", "new"): "train.loggers: wandb needs `pip install 'rmd[track]'`",
    }.items():
        capsys.readouterr()
        assert main(["train", str(recipe), "--dry-run", *more]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"rmd: {sentence}") and err.count("\n") == 1
    Path("file").unlink()
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_batch_and_memory_of_a_dry_run_follow_the_processes(recipe: Path) -> None:
    settings = ["train.batch_size=32", "train.gradient_accumulation_steps=2"]
    loaded = load_recipe(str(recipe), settings)
    assert batch_line(loaded, Parallel()) == "batch 32: 16 samples at once, in 2 micro-batches"
    assert (
        batch_line(loaded, Parallel(0, 8)) == "batch 32: 2 samples at once, by each of 8 processes, in 2 micro-batches"
    )

    for world in (1, 8):
        needed = recipe_memory(loaded, gpus=world)
        assert f"about {needed.total / 1e9:.1f} GB on a GPU" in memory_line(loaded, Parallel(0, world))
    assert "cannot be divided among 3 GPUs" in memory_line(loaded, Parallel(0, 3))
    told = memory_line(load_recipe("sdxl", ["teacher=nobody/knows"]), Parallel())
    assert told.startswith("memory: unknown (")


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_calls_of_a_dry_run_are_those_of_a_run(guidance: float, recipe: Path) -> None:
    loaded = load_recipe(str(recipe), [f"method.guidance={guidance}", "method.warmup_steps=0"])
    trainer = prepare(loaded, Path("run"), None, "cpu", Parallel())
    line = calls_line(trainer.method)
    assert ("(with guidance: twice the batch)" in line) == (guidance != 1.0)
    for iteration in range(3):
        trainer.method.evaluations.clear()
        values, _ = trainer.iterate(iteration)
        assert trainer.method.evaluations == {"student": int(values["step"]), "teacher": 1, "fake": 3}
    assert ", fake score 3" in line and "student 1 to 4 (2.5 on average), teacher 1" in line


def test_calls_on_average_are_over_stages_then_steps(recipe: Path) -> None:
    trainer = prepare(load_recipe(str(recipe), ["plan.thresholds=[-6.0]"]), Path("run"), None, "cpu", Parallel())
    assert "student 1 to 4 (2 on average)" in calls_line(trainer.method)  # (1 + (2 + 3 + 4) / 3) / 2


def test_other_libraries_are_quiet(run_python: Any, recipe: Path) -> None:
    ended = run_python("-m", "rmd", "train", str(recipe), "--dry-run")
    assert ended.returncode == 0 and ended.stderr == ""


@pytest.mark.parametrize(("setting", "option", "expected"), [("3", [], 3), ("3", ["--threads", "2"], 2)])
def test_threads(setting: str, option: list[str], expected: int, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "set_flush_denormal", asked.append)
    assert main(["train", str(recipe), "--dry-run", "--set", f"train.threads={setting}", *option]) == 0
    assert asked == [expected, True]
