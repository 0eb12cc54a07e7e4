"""Atomic files, and checkpoints with clear errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from research.scenes.checkpoint import Checkpoint, read_whole, write_whole
from rmd.common.errors import RMDError


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(state: object, file: Any) -> None:
        file.write(b"the beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.pt"
    write_whole({"a": torch.arange(3), "b": ["x"]}, path)
    result = read_whole(path)
    assert result["a"].tolist() == [0, 1, 2] and result["b"] == ["x"]
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    write_whole({"a": 1}, path)
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(RMDError, match=r"cannot save .*state\.pt: the disk is full"):
            write_whole({"a": 2}, path)
    assert read_whole(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(RMDError, match="is damaged: remove it"):
        read_whole(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'proof'}",)

    path = tmp_path / "state.pt"
    torch.save({"step": Call()}, path)
    with pytest.raises(RMDError, match="is damaged: remove it"):
        read_whole(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match="cannot read"):
        read_whole(tmp_path)


def test_a_checkpoint_is_saved_and_restored(tmp_path: Path) -> None:
    path, module = tmp_path / "c.pt", nn.Linear(2, 2)
    checkpoint = Checkpoint(path, 3, module=module)
    assert checkpoint.restore() == 0
    for done in (1, 2):
        checkpoint.after(done)
    assert not path.exists()
    checkpoint.after(3)
    other = nn.Linear(2, 2)
    resumed = Checkpoint(path, 3, module=other)
    assert resumed.restore() == 3
    assert torch.equal(other.weight, module.weight)
    assert resumed.seconds >= read_whole(path)["seconds"] > 0  # includes the time before the interruption


def test_without_a_path_nothing_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(None, 1, module=nn.Linear(1, 1))
    assert checkpoint.restore() == 0
    checkpoint.after(1)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    Checkpoint(path, 1, module=nn.Linear(2, 2)).after(1)
    for parts in ({"module": nn.Linear(3, 2)}, {"other": nn.Linear(2, 2)}):
        with pytest.raises(RMDError, match="is a checkpoint of another training"):
            Checkpoint(path, 1, **parts).restore()
