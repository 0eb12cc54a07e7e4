"""A tracker that writes one column per metric to metrics.csv in the run's folder: `train.loggers=[csv]`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmd.train.tracking import Tracker


class CsvTracker(Tracker):
    """Appends a row for each logged iteration; the columns are the metrics of the first one."""

    def __init__(self, folder: Path, *, start: int, config: Mapping[str, Any]) -> None:
        """Continue the file of a resumed run, without the rows after iteration `start`, or create a new one."""
        path = folder / "metrics.csv"
        rows = []
        if start > 0 and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["iteration"]) <= start]
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None
        for row in rows:
            self._write(row)

    def log_metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write a row."""
        self._write({"iteration": iteration, **values})

    def _write(self, row: Mapping[str, object]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row), extrasaction="ignore")
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
