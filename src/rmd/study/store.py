"""The votes of a study: an SQLite file to which they are only ever added.

The file is in WAL mode and every vote is synchronised with the disk before it is acknowledged, so a server that is
killed loses no vote that it has confirmed.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rmd.common.errors import RMDError

FILE_NAME = "votes.sqlite"
Choice = Literal["left", "right", "tie"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Letters of codes: those that cannot be taken for one another."""
CODE_LENGTH = 10
_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (design TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS raters (number INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, joined REAL NOT NULL);
CREATE TABLE IF NOT EXISTS shown (
    rater INTEGER NOT NULL REFERENCES raters, task INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (rater, task)
);
CREATE TABLE IF NOT EXISTS votes (
    rater INTEGER NOT NULL REFERENCES raters, task INTEGER NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie')), seconds REAL NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (rater, task)
);
CREATE TRIGGER IF NOT EXISTS votes_stay BEFORE UPDATE ON votes
BEGIN SELECT RAISE(ABORT, 'votes are never changed'); END;
CREATE TRIGGER IF NOT EXISTS votes_remain BEFORE DELETE ON votes
BEGIN SELECT RAISE(ABORT, 'votes are never removed'); END;
"""


@dataclass(frozen=True)
class StoredVote:
    """A vote as it was stored.

    Attributes:
        rater: number of the rater, from 0.
        task: number of the task among the rater's tasks.
        choice: the side that was chosen, or tie.
        seconds: time from the first showing of the pair to the vote.
    """

    rater: int
    task: int
    choice: Choice
    seconds: float


class Store:
    """The votes of one study; its methods may be called from several threads."""

    def __init__(self, path: Path, design: str) -> None:
        """Open a store, or create it.

        Args:
            path: the file.
            design: a hash of the study's design, to which the votes belong.

        Raises:
            RMDError: the file cannot be opened, is no store, or has the votes of another design.
        """
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            row = self._database.execute("SELECT design FROM study").fetchone()
        except sqlite3.Error as error:
            raise RMDError(f"cannot open the votes in {path}: {error}; move the file away to start anew") from error
        if row is None:
            self._database.execute("INSERT INTO study VALUES (?)", (design,))
        elif row[0] != design:
            self._database.close()
            raise RMDError(
                f"the votes in {path} belong to another design: move the file away, or restore the design's study.json"
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def join(self) -> tuple[int, str]:
        """Add a rater; return the number, from 0, and the code with which the rater can come back."""
        with self._writing() as database:
            number = int(database.execute("SELECT COUNT(*) FROM raters").fetchone()[0])
            code = "".join(secrets.choice(LETTERS) for _ in range(CODE_LENGTH))
            database.execute("INSERT INTO raters VALUES (?, ?, ?)", (number, code, time.time()))
        return number, code

    def rater(self, code: str) -> int | None:
        """Return the number of the rater with a code, or None."""
        with self._lock:
            row = self._database.execute("SELECT number FROM raters WHERE code = ?", (code,)).fetchone()
        return None if row is None else int(row[0])

    def done(self, rater: int) -> int:
        """Return how many tasks a rater has done; they are done in their order."""
        with self._lock:
            row = self._database.execute("SELECT COUNT(*) FROM votes WHERE rater = ?", (rater,)).fetchone()
        return int(row[0])

    def show(self, rater: int, task: int) -> float:
        """Note that a task is shown; return the time of its first showing, in seconds since 1970."""
        with self._writing() as database:
            database.execute("INSERT OR IGNORE INTO shown VALUES (?, ?, ?)", (rater, task, time.time()))
            row = database.execute("SELECT at FROM shown WHERE rater = ? AND task = ?", (rater, task)).fetchone()
        return float(row[0])

    def vote(self, rater: int, task: int, choice: Choice, *, min_seconds: float) -> Literal["stored", "early", "other"]:
        """Store a vote for a rater's next task.

        The same vote may come twice, if the first confirmation was lost.

        Returns:
            "stored"; or "early" if the pair has not been shown for `min_seconds`; or "other" if it is not the rater's
            turn for this task, or the task has another vote.
        """
        with self._writing() as database:
            before = database.execute("SELECT choice FROM votes WHERE rater = ? AND task = ?", (rater, task)).fetchone()
            if before is not None:
                return "stored" if before[0] == choice else "other"
            (count,) = database.execute("SELECT COUNT(*) FROM votes WHERE rater = ?", (rater,)).fetchone()
            shown = database.execute("SELECT at FROM shown WHERE rater = ? AND task = ?", (rater, task)).fetchone()
            if task != count or shown is None:
                return "other"
            now = time.time()
            if now - shown[0] < min_seconds:
                return "early"
            database.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?)", (rater, task, choice, now - shown[0], now))
        return "stored"

    def votes(self) -> list[StoredVote]:
        """Return all votes in the order of raters and tasks."""
        with self._lock:
            rows = self._database.execute("SELECT rater, task, choice, seconds FROM votes ORDER BY rater, task")
            return [StoredVote(*row) for row in rows.fetchall()]

    def raters(self) -> int:
        """Return the number of raters who have joined."""
        with self._lock:
            return int(self._database.execute("SELECT COUNT(*) FROM raters").fetchone()[0])

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the lock and a transaction, which is on the disk when the block has ended."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
