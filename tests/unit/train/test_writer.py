"""Writing checkpoints: each is complete or absent, and older ones are pruned only after the next one is safe."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same
from toy_checkpoints import IDENTITY, advance, everything, make, meta_of, save_now

from rmd.common.errors import RMDError
from rmd.train import writer
from rmd.train.checkpoint import checkpoints, load_checkpoint
from rmd.train.writer import CheckpointWriter


def test_checkpoints_are_listed_in_order_and_the_newest_are_kept(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    assert checkpoints(tmp_path / "none") == []
    for iteration in (5, 900_000, 1_000_000):
        save_now(tmp_path, iteration, trained)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-900000", "step-1000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-900000"]


def test_the_next_save_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    left = tmp_path / ".step-000004.partial"
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half")
    save_now(tmp_path, 6, trained)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000006"]


def test_saving_the_same_iteration_again_replaces_it(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    save_now(tmp_path, 3, trained)
    advance(trained, seed=2)
    path, target = save_now(tmp_path, 3, trained), make()
    load_checkpoint(path, target, identity=IDENTITY)
    assert_same(everything(target), everything(trained))
    assert checkpoints(tmp_path) == [path]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file: No space left on device"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_a_save_that_fails_leaves_the_earlier_ones_alone(
    error: Exception, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make()
    advance(trained)
    before = [save_now(tmp_path, 1, trained), save_now(tmp_path, 2, trained)]
    kept = everything(trained)

    def fail(tensors: object, *, checkpoint_id: Path, **options: object) -> None:
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(writer, "save", fail)
    advance(trained, seed=1)
    with pytest.raises(RMDError, match=f"^cannot save .*step-000003: {why}; earlier checkpoints are intact"):
        save_now(tmp_path, 3, trained)
    assert checkpoints(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == sorted(before)
    target = make()
    assert load_checkpoint(before[-1], target, identity=IDENTITY).iteration == 2
    assert_same(everything(target), kept)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RMDError, match=r"^cannot save .*step-000001"):
        save_now(tmp_path / "run", 1, make())


def test_a_kill_while_a_checkpoint_is_removed_leaves_none_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make()
    advance(trained)
    save_now(tmp_path, 1, trained)
    monkeypatch.setattr(writer.shutil, "rmtree", lambda path, ignore_errors: None)  # killed before anything is gone
    for iteration in (2, 3):
        save_now(tmp_path, iteration, trained, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003"]
    monkeypatch.undo()
    save_now(tmp_path, 4, trained, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint holds the state at the time of saving, whatever the training does meanwhile."""
    trained, target = make("full"), make("full")
    advance(trained)
    kept, go_on = everything(trained), threading.Event()
    real = writer.save

    def slow(*arguments: Any, **options: Any) -> Any:
        assert go_on.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr(writer, "save", slow)
    beside = CheckpointWriter(tmp_path, keep_last=2)
    path = beside.save(trained, meta_of(1))
    advance(trained, seed=1)
    assert checkpoints(tmp_path) == []
    go_on.set()
    beside.close()
    load_checkpoint(path, target, identity=IDENTITY)
    assert_same(everything(target), kept)


def test_the_last_good_checkpoint_outlives_those_that_look_bad(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    beside = CheckpointWriter(tmp_path, keep_last=1)
    for iteration in range(1, 6):
        beside.good_until = 4 if iteration > 3 else None
        beside.save(trained, meta_of(iteration))
    beside.close()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003", "step-000005"]


def test_milestones_are_kept_for_good(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    for iteration in range(1, 8):
        save_now(tmp_path, iteration, trained, keep=2, keep_every=3)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-00000{i}" for i in (3, 6, 7)]
