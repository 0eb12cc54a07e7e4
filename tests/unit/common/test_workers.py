"""Workers: their names, what torchrun says about them, and that no two do the same work."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.common.workers import (
    ALONE,
    WorkerError,
    is_first,
    own_errors,
    started_worker,
    worker_lock,
    worker_of,
    working,
)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "1/0", "a/b", "0/1/2", "0 /2"])
def test_a_worker_is_one_of_n(text: str) -> None:
    assert worker_of("0/1") == ALONE and worker_of("3/4") == (3, 4)
    with pytest.raises(RMDError, match=r"^--worker should be I/N with I from 0 to N - 1, but is "):
        worker_of(text)


def test_torchrun_says_which_worker_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert started_worker(None) == ALONE and started_worker("1/3") == (1, 3) and is_first()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert started_worker("1/3") == (1, 3)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert started_worker(None) == (5, 8) and not is_first()
    with pytest.raises(RMDError, match=r"^torchrun divides the work among its processes already: leave --worker out$"):
        started_worker("0/2")


def test_workers_of_one_number_work_together_and_others_wait(tmp_path: Path) -> None:
    begun: list[str] = []
    with working(tmp_path, (0, 2), lambda: begun.append("first")), working(tmp_path, (1, 2)):
        assert begun == ["first"] and (tmp_path / worker_lock((1, 2))).is_file()
        for other in ((0, 2), (0, 3), ALONE):
            with pytest.raises(RMDError, match=r"^another process is writing to "), working(tmp_path, other):
                begun.append("too many")
    with working(tmp_path, ALONE):
        assert begun == ["first"]


def test_errors_of_one_worker_are_its_own() -> None:
    with pytest.raises(WorkerError, match=r"^damaged$"), own_errors():
        raise RMDError("damaged")
    with pytest.raises(ValueError, match=r"^other$"), own_errors():
        raise ValueError("other")
