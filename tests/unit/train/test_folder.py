"""One run at a time writes to a folder, a killed run blocks nobody, and an unused folder is removed."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from rmd.common.errors import RMDError
from rmd.common.files import LOCK
from rmd.train.folder import hold_folder
from rmd.train.parallel import Parallel


def hold_until_told(folder: Path, pipe: Any) -> None:
    with hold_folder(folder, Parallel(), resume=False):
        pipe.send("held")
        pipe.recv()


def test_a_second_run_is_refused_while_the_first_lives_and_not_after_it_was_killed(tmp_path: Path) -> None:
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold_until_told, args=(tmp_path / "run", theirs))
    process.start()
    try:
        assert ours.recv() == "held"
        with (
            pytest.raises(RMDError, match=f"^another process is writing to {tmp_path / 'run'}: wait until it has"),
            hold_folder(tmp_path / "run", Parallel(), resume=False),
        ):
            raise AssertionError
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    with hold_folder(tmp_path / "run", Parallel(), resume=False):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_folder_that_was_not_used_is_removed_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with hold_folder(tmp_path / "there" / "new" / "run", Parallel(), resume=False):
        pass
    assert list((tmp_path / "there").iterdir()) == []
    with hold_folder(tmp_path / "there", Parallel(), resume=False):
        pass
    with hold_folder(tmp_path / "new" / "run", Parallel(), resume=False):
        (tmp_path / "new" / "run" / "metrics.jsonl").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [LOCK, LOCK, "metrics.jsonl", "new", "run", "there"]


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).mkdir()  # no file can be opened there, as in a folder that is read-only
    sentence = f"^cannot write to {tmp_path / 'run'}: .*; choose another --out$"
    with pytest.raises(RMDError, match=sentence), hold_folder(tmp_path / "run", Parallel(), resume=False):
        raise AssertionError
