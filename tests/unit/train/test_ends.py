"""The end of a run and its resumption: signals at odd moments, full disks, and a folder that another run holds."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same, make_recipe, write_prompts
from toy_runs import everything, metrics, toy

from rmd.common.errors import RMDError
from rmd.train import writer
from rmd.train.callbacks import Callback
from rmd.train.checkpoint import checkpoints
from rmd.train.run import Run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


def test_a_signal_before_the_first_iteration_saves_that_iteration(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, train={"iterations": 3})
    first = toy(recipe, tmp_path / "run")

    class Interrupt(Callback):
        def start(self, run: Run, iteration: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    first.callbacks.insert(0, Interrupt())
    assert first.train() == 1
    resumed, whole = toy(recipe, tmp_path / "run"), toy(recipe, tmp_path / "whole")
    assert resumed.train(resume=True) == whole.train() == 3
    assert_same(everything(resumed), everything(whole))


def test_signals_while_the_last_checkpoint_is_written_do_not_cut_it_short(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = writer.save

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)  # the main thread waits for it meanwhile
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        return save(*arguments, **options)

    monkeypatch.setattr(writer, "save", slow)
    recipe = make_recipe(prompts, train={"iterations": 2, "checkpoint_every": 100})
    trainer = toy(recipe, tmp_path / "run")
    assert trainer.train() == 2
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == ["step-000002"]
    assert toy(recipe, tmp_path / "run").start(resume=True) == 2


def test_a_run_holds_its_folder(prompts: Path, tmp_path: Path) -> None:
    recipe, refused = make_recipe(prompts), []
    trainer, other = toy(recipe, tmp_path / "run"), toy(recipe, tmp_path / "run")

    def start_another(done: int, values: dict[str, float]) -> None:
        for resume in (False, True):
            with pytest.raises(RMDError, match=r"^another process is writing to"):
                other.train(resume=resume)
            refused.append(done)

    trainer.on_iteration = start_another
    assert trainer.train() == 6 and len(refused) == 12
    assert [row["iteration"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert other.train(resume=True) == 6  # the lock ended with the run


def test_a_disk_that_is_full_for_the_metrics_ends_the_run_with_its_checkpoints_intact(
    prompts: Path, tmp_path: Path
) -> None:
    recipe, folder = make_recipe(prompts, train={"checkpoint_every": 1}), tmp_path / "run"
    trainer = toy(recipe, folder)

    def fill(done: int, values: dict[str, float]) -> None:
        if done == 2:
            (folder / "metrics.jsonl").rename(folder / "kept")
            (folder / "metrics.jsonl").symlink_to("/dev/full")

    trainer.on_iteration = fill
    with pytest.raises(RMDError, match=f"^cannot write to {folder}: the disk is full; its checkpoints are intact"):
        trainer.train()
    assert checkpoints(trainer.checkpoint_folder)[-1].name == "step-000002"
    (folder / "kept").replace(folder / "metrics.jsonl")  # room was made
    resumed, whole = toy(recipe, folder), toy(recipe, tmp_path / "whole")
    assert resumed.train(resume=True) == whole.train() == 6
    assert_same(everything(resumed), everything(whole))
    assert metrics(folder) == metrics(tmp_path / "whole")


def test_a_recipe_that_cannot_be_written_leaves_the_earlier_one(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = make_recipe(prompts), tmp_path / "run" / "recipe.yaml"
    toy(recipe, tmp_path / "run").train()
    before, write = path.read_bytes(), Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        if "recipe" in self.name:
            write(self, text[:100], **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, text, **options)

    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 8})})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RMDError, match="the disk is full; its checkpoints are intact"):
            toy(longer, tmp_path / "run").train(resume=True)
    assert path.read_bytes() == before
    assert not list((tmp_path / "run").glob("*partial*"))
    assert toy(longer, tmp_path / "run").train(resume=True) == 8
