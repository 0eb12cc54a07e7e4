"""The store: names that nobody guesses, files whose time is over, and videos of servers that have ended."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.serve.batching import Shape
from rmd.serve.store import Store, VideoRecord


def store(folder: Path, keep: float = 100.0, most: int = 10**6) -> Store:
    return Store(folder, keep=keep, most=most)


def record(number: int, server: str, status: str = "queued") -> VideoRecord:
    return VideoRecord(
        id=f"video_{number:032x}", server=server, status=status, model="wan", prompt="a kite", seed=2**63, height=32,
        width=48, frames=5, fps=16, created_at=1000 + number,
    )  # fmt: skip


def test_a_picture_is_found_by_its_name_and_by_no_other(tmp_path: Path) -> None:
    opened = store(tmp_path / "store")
    with opened.opened():
        name = opened.put(b"picture", "png")
        path = opened.file(name)
        assert path is not None and path.read_bytes() == b"picture" and len(name) == len("image_.png") + 32
        assert opened.put(b"picture", "png") != name
    (tmp_path / "secret.png").write_bytes(b"secret")
    for wrong in ("../secret.png", f"x/../{name}", name.upper(), "image_.png", "", "servers", f"{name}\n"):
        assert opened.file(wrong) is None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    opened = store(tmp_path)
    opened.write(first := record(1, opened.server))
    opened.write(second := record(2, opened.server, "completed"))
    assert opened.read(first.id) == first and opened.records() == [second, first]
    assert first.shape == Shape("wan", 32, 48, 5)
    assert opened.delete(first.id) and not opened.delete(first.id) and opened.records() == [second]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 2}', "\0", "[" * 10**5])
def test_a_damaged_record_is_none(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = store(tmp_path)
    opened.write(known := record(1, opened.server))
    (tmp_path / f"{known.id}.json").write_text(text, encoding="utf-8")
    assert opened.read(known.id) is None and opened.records() == []
    assert known.id in caplog.text


def test_records_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    opened = store(tmp_path / "store")
    outside = store(tmp_path)
    outside.write(known := record(1, outside.server))
    assert opened.read(f"../{known.id}") is None and not opened.delete(f"../{known.id}")
    assert outside.read(known.id) == known


def test_results_go_when_their_time_is_over_and_unfinished_videos_stay(tmp_path: Path) -> None:
    opened, now = store(tmp_path), time.time()
    old, new = opened.put(b"old", "png"), opened.put(b"new", "webp")
    for number, status in ((1, "queued"), (2, "completed"), (3, "failed")):
        opened.write(record(number, opened.server, status))
        opened.video(record(number, "0" * 32).id).write_bytes(b"clip")
    rest = tmp_path / f".{old}.partial"
    rest.write_bytes(b"rest of a server that was killed")
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    for path in tmp_path.iterdir():
        if path.name != new:
            os.utime(path, (now - 200, now - 200))
    opened.prune(now)
    kept = f"video_{1:032x}"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["notes.txt", new, f"{kept}.json", f"{kept}.mp4"])


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    opened, now = store(tmp_path, most=25), time.time()
    names = [opened.put(b"x" * 10, "png") for _ in range(4)]
    for age, name in enumerate(reversed(names)):
        os.utime(tmp_path / name, (now - age, now - age))
    opened.prune(now)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_a_server_takes_over_from_those_that_have_ended_only(tmp_path: Path) -> None:
    ended, alive, new = store(tmp_path), store(tmp_path), store(tmp_path)
    with ended.opened():
        for number, status in ((2, "queued"), (1, "queued"), (3, "completed")):
            ended.write(record(number, ended.server, status))
    with alive.opened(), new.opened():
        alive.write(record(4, alive.server))
        claimed = new.claim()
        assert [each.id for each in claimed] == [record(1, "0" * 32).id, record(2, "0" * 32).id]
        assert {each.server for each in claimed} == {new.server} and new.claim() == [] and alive.claim() == []
    assert len(store(tmp_path).claim()) == 3
    assert list((tmp_path / "servers").iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RMDError, match=r"cannot write to .*file/servers: "), store(tmp_path / "file").opened():
        pass
