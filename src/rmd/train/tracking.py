"""Reports the metrics and pictures of a run: always to files in its folder, and to the trackers of its recipe.

Another package adds a tracker with an entry point in the group `rmd.trackers` that names a subclass of `Tracker`;
`train.loggers` then accepts it by name.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch.utils.tensorboard.writer import SummaryWriter

from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, read_errors, replacing, write_text
from rmd.common.plugins import Registry

_RECORD = TypeAdapter(dict[str, int | float | None], config=ConfigDict(strict=True, allow_inf_nan=False))
MACHINE = ("seconds", "data_seconds", "images_per_second", "peak_memory_gb")
"""Machine-dependent metrics; everything else is reproducible."""


class Tracker:
    """Receives a run's metrics and pictures, in the first process only. The methods do nothing unless overridden."""

    @classmethod
    def check(cls) -> None:
        """Check, before the teacher's weights are loaded, that the tracker can be used.

        Raises:
            RMDError: it cannot, for instance because a package is not installed.
        """

    def __init__(self, folder: Path, *, start: int, config: Mapping[str, Any]) -> None:
        """Open the tracker for a run.

        Args:
            folder: the run's folder, whose name is the name of the run.
            start: number of iterations that are already done; records after it will be made again.
            config: the run's recipe, as plain values.

        Raises:
            RMDError: it cannot be opened.
        """

    def log_metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the metrics of an iteration; values may be infinite or NaN."""

    def log_picture(self, name: str, iteration: int, image: Image.Image) -> None:
        """Log a picture, such as `samples` or `scores`."""

    def close(self) -> None:
        """Finish; called once, also when the run ends with an error."""


TRACKERS: Registry[type[Tracker]] = Registry(
    "rmd.trackers", "tracker", {"wandb": "rmd.train.tracking:Wandb", "trackio": "rmd.train.tracking:Trackio"}
)
"""Trackers that `train.loggers` may name."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise RMDError if one of the named trackers does not exist or cannot be used."""
    for name in names:
        TRACKERS.get(name).check()


class LocalFiles(Tracker):
    """Writes `metrics.jsonl`, TensorBoard events and PNG pictures into the folder of a run."""

    def __init__(self, folder: Path, *, start: int, config: Mapping[str, Any] | None = None) -> None:
        """Open the files; records after iteration `start` are dropped, since they will be made again.

        Raises:
            RMDError: the folder cannot be written to, or its metrics cannot be read.
        """
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if (row["iteration"] or 0) <= start] if start else []
        with run_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def log_metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append one record; values that are not finite are written as null.

        Raises:
            RMDError: the record cannot be written.
        """
        record = {"iteration": iteration, **{k: v if np.isfinite(v) else None for k, v in values.items()}}
        with run_disk_errors(self.folder):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            for name, value in values.items():
                self._events.add_scalar(name, value, iteration)
            if "step" in values:  # an iteration trains a single step, and the gap differs greatly between steps
                self._events.add_scalar(f"gap/step-{values['step']:.0f}", values["gap"], iteration)

    def log_picture(self, name: str, iteration: int, image: Image.Image) -> None:
        """Save `pictures/<name>-<iteration>.png` and show it in TensorBoard.

        Raises:
            RMDError: the picture cannot be written.
        """
        path = self.folder / "pictures" / f"{name}-{iteration:06d}.png"
        with run_disk_errors(self.folder):
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as partial:
                image.save(partial, "PNG")
            self._events.add_image(name, np.asarray(image.convert("RGB")), iteration, dataformats="HWC")

    def close(self) -> None:
        """Write what TensorBoard still buffers.

        Raises:
            RMDError: it cannot be written.
        """
        with run_disk_errors(self.folder):
            self._events.close()


class _Service(Tracker, ABC):
    """A run's page at a service, which a resumed run continues; the two services differ in how a run is named."""

    package: ClassVar[str]

    @classmethod
    def check(cls) -> None:
        """Raise RMDError if the service's package is not installed."""
        cls._imported()

    def __init__(self, folder: Path, *, start: int, config: Mapping[str, Any]) -> None:
        """Open the page under the name of the run's folder."""
        self._module = self._imported()
        with run_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            page = _page_id(folder)
        self._module.init(project="rmd", config=dict(config), resume="allow", **self._names(folder, page))

    def log_metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Send the metrics of an iteration."""
        self._module.log(dict(values), step=iteration)

    def log_picture(self, name: str, iteration: int, image: Image.Image) -> None:
        """Send a picture."""
        self._module.log({name: self._module.Image(image)}, step=iteration)

    def close(self) -> None:
        """Finish the page."""
        self._module.finish()

    @classmethod
    def _imported(cls) -> Any:
        try:
            return importlib.import_module(cls.package)
        except ImportError as error:
            raise RMDError(f"train.loggers: {cls.package} needs `pip install 'rmd[track]'`") from error

    @abstractmethod
    def _names(self, folder: Path, page: str) -> dict[str, str]:
        """Return the arguments by which the service tells this run from others."""


class Wandb(_Service):
    """Sends metrics and pictures to Weights & Biases."""

    package = "wandb"

    def _names(self, folder: Path, page: str) -> dict[str, str]:
        return {"name": folder.name, "dir": str(folder), "id": page}


class Trackio(_Service):
    """Sends metrics and pictures to Trackio."""

    package = "trackio"

    def _names(self, folder: Path, page: str) -> dict[str, str]:
        return {"name": f"{folder.name}-{page[:6]}"}  # Trackio identifies runs by their names alone


def _page_id(folder: Path) -> str:
    """Return the id of a run's page: it stays the same when the run is resumed, and no other run has it."""
    path = folder / "page-id"
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Read the records of a `metrics.jsonl`; values that were not finite are None.

    A last line that was cut short when the run was killed is ignored.

    Raises:
        RMDError: the file cannot be read, or another line is not a record.
    """
    with read_errors(path):
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines):  # each complete line ends with a line break, so this one is empty or was cut short
            break
        try:
            row: dict[str, float | None] = _RECORD.validate_json(line)
        except ValidationError as error:
            raise RMDError(f"{path}, line {number} is not a record of metrics: remove that line") from error
        if row.get("iteration") is None:
            raise RMDError(f"{path}, line {number} has no iteration: remove that line")
        rows.append(row)
    return rows


def run_disk_errors(folder: Path) -> AbstractContextManager[None]:
    """Return `rmd.common.files.disk_errors` with advice for a run whose folder cannot be written to."""
    return disk_errors(folder, "its checkpoints are intact; fix the cause and run again with --resume")


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory in GB (1e9 bytes): torch's on a GPU, or the whole process's in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
