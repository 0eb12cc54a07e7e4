"""Values that were computed so far: every worker keeps its own in a file, and reads those of all others.

A value is kept under a key of everything that decides it, so an interrupted command continues, and a picture that was
exchanged is scored again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rmd.common.files import disk_errors, read_errors
from rmd.common.workers import ALONE, Worker, working
from rmd.scores.result import Preparation

PATTERN = "scores*.jsonl"
"""Names of all journals of a folder."""


def journal_name(worker: Worker) -> str:
    """Return the name of a worker's journal."""
    return "scores.jsonl" if worker == ALONE else f"scores-{worker[0]}-of-{worker[1]}.jsonl"


def key_of(preparation: Preparation, dtype: str, prompt: str, digest: str, others: Sequence[str] = ()) -> str:
    """Return the key of a value.

    Args:
        preparation: everything that decides a value, apart from the pictures and the prompt.
        dtype: the type in which networks compute.
        prompt, digest: the prompt, and the SHA-256 of the picture.
        others: those of the other pictures on which the value depends.
    """
    parts = [f"{preparation.model_dump_json()} {dtype}", prompt, digest, *sorted(others)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class Journal:
    """The journals of a folder, of which a worker continues its own.

    Attributes:
        path: the worker's own file.
        values: the values of all workers by key, as far as they were read.
    """

    def __init__(self, folder: Path, worker: Worker) -> None:
        self.path, self.values = folder / journal_name(worker), dict[str, float]()
        self.start = ""
        self.read()
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            self.start = "\n"  # the last line was not written to its end

    def read(self) -> None:
        """Read the values that all workers have written until now.

        Raises:
            RMDError: a journal cannot be read.
        """
        for path in sorted(self.path.parent.glob(PATTERN)):
            with read_errors(path):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines:
                try:
                    key, value = json.loads(line)
                    number = float(value)
                except (ValueError, TypeError):
                    continue  # a line that is being written, or was not written to its end
                if math.isfinite(number):
                    self.values[str(key)] = number

    def add(self, values: dict[str, float]) -> None:
        """Keep values.

        Raises:
            RMDError: they cannot be written.
        """
        self.values |= values
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(self.start + "".join(json.dumps([key, value]) + "\n" for key, value in values.items()))
        self.start = ""


@contextmanager
def opened_journal(folder: Path, worker: Worker) -> Iterator[Journal]:
    """Yield the journal of a worker, which no other process has at the same time.

    Raises:
        RMDError: the same worker, or one of another number of workers, is running; or the folder cannot be used.
    """
    with working(folder, worker):
        yield Journal(folder, worker)
