"""RMD's files are written atomically, by one process at a time, and are validated when they are read."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from rmd.common.errors import RMDError
from rmd.common.files import locked, parse_model, read_model, reason, replacing, write_text
from rmd.common.typed import Strict


class Note(Strict):
    version: Literal[2] = 2
    name: str
    sides: tuple[int, ...] = ()
    share: float = 0.0


def test_text_replaces_text(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "one")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("two")
        raise ZeroDivisionError
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "student"
    for name in ("old", "new"):
        with replacing(path) as partial:
            partial.mkdir()
            (partial / name).touch()
    assert [each.name for each in path.iterdir()] == ["new"]


def test_a_folder_comes_back_after_a_kill_between_two_renames(tmp_path: Path) -> None:
    path = tmp_path / "student"
    (tmp_path / ".student.previous").mkdir()
    (tmp_path / ".student.previous" / "old").touch()
    with pytest.raises(ZeroDivisionError), replacing(path):
        raise ZeroDivisionError
    assert [each.name for each in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_stays_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student"
    path.mkdir()
    (path / "old").touch()
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == ".student.partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"), replacing(path) as partial:
        partial.mkdir()
    assert [each.name for each in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_get_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "folder") as partial:
            partial.mkdir()
            save_file({"w": torch.zeros(2)}, partial / "w.safetensors")  # which alone would be 0600
        write_text(tmp_path / "text", "")
    finally:
        os.umask(before)
    for path in (tmp_path / "folder" / "w.safetensors", tmp_path / "text"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_second_writer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(RMDError, match=r"another process is writing to .*run: wait"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):
        pass


def _hold(folder: Path, held: multiprocessing.synchronize.Event) -> None:
    with locked(folder):
        held.set()
        signal.pause()


def test_the_lock_of_a_killed_process_blocks_nobody(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held))
    process.start()
    assert held.wait(20)
    with pytest.raises(RMDError, match="another process"), locked(tmp_path):
        pass
    process.kill()
    process.join()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RMDError, match=r"cannot write to .*file/run"), locked(tmp_path / "file" / "run"):
        pass


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    note = Note(name="a", sides=(1, 2), share=0.1)
    write_text(tmp_path / "note.json", note.model_dump_json())
    assert read_model(tmp_path / "note.json", Note) == note


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON: recursion limit"),
        ('{"version": 2, "name": "\\ud83e"}', "is not valid JSON"),
        ('{"version": 2, "name": "a", "share": NaN}', "is not valid JSON"),
        ('{"version": 2, "name": "a", "share": 1e999}', "share should be a finite number"),
        ('{"version": 2, "name": 3}', "name should be text, but is 3"),
        ('{"version": 2, "nam": "a"}', "there is no key nam (did you mean 'name'?) (and 1 more)"),
        ('{"version": 2}', "name is missing"),
        ('{"version": 3, "name": "a"}', "has version 3, but this RMD reads version 2: update RMD to read it"),
        ('{"name": "a"}', "has version 1, but this RMD reads version 2: write it again"),
        ('{"version": "2", "name": "a"}', "has version '2', but this RMD reads version 2"),
        ("[]", "should be a group of keys, but is []"),
        ('{"version": 2, "name": "a", "sides": [1, "2"]}', "sides[1] should be a whole number, but is '2'"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(RMDError) as caught:
        parse_model(text, Note, "note.json")
    message = str(caught.value)
    assert message.startswith("note.json") and reason in message and "\n" not in message


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "note.json", tmp_path):
        with pytest.raises(RMDError, match="there is no file"):
            read_model(path, Note)


def test_a_full_disk_is_recognised_behind_the_errors_of_libraries() -> None:
    hidden = RuntimeError("unexpected pos 704 vs 598")
    hidden.__context__ = OSError(errno.ENOSPC, "No space left on device")
    for error in (
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        hidden,
        SafetensorError("I/O error: No space left on device"),
    ):
        assert reason(error) == "the disk is full"


def test_other_reasons_are_those_of_the_operating_system_or_else_the_error_itself() -> None:
    assert reason(PermissionError(errno.EACCES, "Permission denied", "file")) == "Permission denied"
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = OSError(errno.EROFS, "Read-only file system")
    assert reason(wrapped) == "Read-only file system"
    assert reason(ValueError("two\nlines")) == "two lines"
    assert reason(ValueError()) == "ValueError"
