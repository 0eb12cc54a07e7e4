"""The votes: only ever added, in turn, safe against repetition, threads and a killed process."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.study.store import CODE_LENGTH, LETTERS, Store, StoredVote


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "votes.sqlite", "design")


def test_raters_get_numbers_and_codes(store: Store) -> None:
    (first, code), (second, other) = store.join(), store.join()
    assert (first, second, store.raters()) == (0, 1, 2) and code != other
    assert len(code) == CODE_LENGTH and set(code) <= set(LETTERS)
    assert store.rater(code) == 0 and store.rater("nobody") is None


def test_votes_are_cast_in_turn_and_may_be_sent_twice(store: Store) -> None:
    rater, _ = store.join()
    assert store.vote(rater, 0, "left", min_seconds=0) == "other"  # it has not been shown
    store.show(rater, 0)
    assert store.vote(rater, 0, "left", min_seconds=60) == "early"
    assert store.vote(rater, 0, "left", min_seconds=0) == "stored"
    assert store.vote(rater, 0, "left", min_seconds=0) == "stored"
    assert store.vote(rater, 0, "right", min_seconds=0) == "other"
    store.show(rater, 2)
    assert store.vote(rater, 2, "tie", min_seconds=0) == "other"
    assert store.done(rater) == 1 and [(v.task, v.choice) for v in store.votes()] == [(0, "left")]


def test_a_pair_counts_from_its_first_showing(store: Store) -> None:
    rater, _ = store.join()
    assert store.show(rater, 0) == store.show(rater, 0)


@pytest.mark.parametrize("change", ["UPDATE votes SET choice = 'right'", "DELETE FROM votes"])
def test_votes_are_never_changed_or_removed(store: Store, tmp_path: Path, change: str) -> None:
    rater, _ = store.join()
    store.show(rater, 0)
    store.vote(rater, 0, "left", min_seconds=0)
    other = sqlite3.connect(tmp_path / "votes.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match=r"^votes are never (changed|removed)$"):
        other.execute(change)
    other.close()
    assert [vote.choice for vote in store.votes()] == ["left"]


def test_many_threads_lose_nothing(store: Store) -> None:
    def rate(_: int) -> int:
        rater, _code = store.join()
        for task in range(10):
            store.show(rater, task)
            assert store.vote(rater, task, "tie", min_seconds=0) == "stored"
        return rater

    with ThreadPoolExecutor(20) as threads:
        raters = list(threads.map(rate, range(20)))
    assert sorted(raters) == list(range(20))
    assert [(vote.rater, vote.task) for vote in store.votes()] == [(r, t) for r in range(20) for t in range(10)]


def test_a_killed_process_has_kept_what_it_confirmed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from rmd.study.store import Store\n"
        "store = Store(Path(sys.argv[1]), 'design'); rater, _ = store.join()\n"
        "for task in range(100000):\n"
        "    store.show(rater, task); store.vote(rater, task, 'left', min_seconds=0); print(task, flush=True)\n"
    )
    path = tmp_path / "votes.sqlite"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        confirmed = [int(process.stdout.readline()) for _ in range(25)]
        process.send_signal(signal.SIGKILL)
        confirmed += [int(line) for line in process.stdout.read().split()]
    store = Store(path, "design")
    kept = [vote.task for vote in store.votes()]
    assert kept[: len(confirmed)] == confirmed and len(kept) <= len(confirmed) + 1
    store.show(0, len(kept))
    assert store.vote(0, len(kept), "right", min_seconds=0) == "stored"


def test_votes_belong_to_their_design(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    first = Store(path, "one")
    rater, _ = first.join()
    first.show(rater, 0)
    first.vote(rater, 0, "tie", min_seconds=0)
    first.close()
    assert isinstance(Store(path, "one").votes()[0], StoredVote)
    with pytest.raises(RMDError, match=r"^the votes in .* belong to another design: "):
        Store(path, "another")


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "votes.sqlite").write_text("these are no votes, but a text that is long enough to be read as pages\n")
    with pytest.raises(RMDError, match=r"^cannot open the votes in .*votes\.sqlite: .*; move the file away "):
        Store(tmp_path / "votes.sqlite", "design")
