"""What a run writes about itself: `metrics.jsonl` always, TensorBoard events, and PNG panels."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch.utils.tensorboard.writer import SummaryWriter

from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, reason, replacing, write_text

_RECORD = TypeAdapter(dict[str, int | float | None], config=ConfigDict(strict=True, allow_inf_nan=False))
MACHINE = ("seconds", "data_seconds", "images_per_second", "peak_memory_gb")
"""What in a record is of the machine and its clock; the rest is the run's, and comes again."""


def peak_memory_gb(device: torch.device) -> float:
    """The most that torch has held on a GPU, or the process in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def run_disk_errors(folder: Path) -> AbstractContextManager[None]:
    """Return `rmd.common.files.disk_errors` with advice for a run whose folder cannot be written to."""
    return disk_errors(folder, "checkpoints in it are intact, put that right and run again with --resume")


class Tracker:
    """Writes metrics and pictures of a run into its folder; a resumed run goes on where the file must continue."""

    def __init__(
        self, folder: Path, *, start: int, loggers: Sequence[str] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        """Open the run's files; records after iteration `start` are dropped, since they will be made again.

        Args:
            loggers: `wandb` or `trackio`, which also receive everything, under the folder's name.
            config: the run's settings that these loggers show.

        Raises:
            RMDError: a service is not installed, the folder cannot be written to, or its metrics are not readable.
        """
        self._services = [Service(name, folder, config or {}) for name in loggers]
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if (row["iteration"] or 0) <= start] if start else []
        with run_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
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
            if "step" in values:  # each iteration trains one step, and gaps differ much between steps
                self._events.add_scalar(f"gap/step-{values['step']:.0f}", values["gap"], iteration)
        for service in self._services:
            service.metrics(iteration, values)

    def picture(self, name: str, iteration: int, image: Image.Image) -> Path:
        """Save `<name>-<iteration>.png` and show it in TensorBoard.

        Raises:
            RMDError: the picture cannot be written.
        """
        path = self.folder / "pictures" / f"{name}-{iteration:06d}.png"
        with run_disk_errors(self.folder):
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as partial:
                image.save(partial, "PNG")
            self._events.add_image(name, np.asarray(image.convert("RGB")), iteration, dataformats="HWC")
        for service in self._services:
            service.picture(name, iteration, image)
        return path

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with run_disk_errors(self.folder):
            self._events.close()
        for service in self._services:
            service.close()


def service_module(name: str) -> Any:
    """Return the module of a service that receives metrics; raise RMDError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RMDError(f"train.loggers: {name} needs `pip install 'rmd[track]'`") from error


class Service:
    """A run's page at Weights & Biases or Trackio, whose functions are alike."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._module = service_module(name)
        with run_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            page = _page_id(folder)  # a resumed run continues its page
        if name == "wandb":
            about = {"name": folder.name, "dir": str(folder), "id": page}
        else:
            about = {"name": f"{folder.name}-{page[:6]}"}  # which is all that Trackio tells runs apart by
        self._module.init(project="rmd", config=dict(config), resume="allow", **about)

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=iteration)

    def picture(self, name: str, iteration: int, image: Image.Image) -> None:
        self._module.log({name: self._module.Image(image)}, step=iteration)

    def close(self) -> None:
        self._module.finish()


def _page_id(folder: Path) -> str:
    """The same for every sitting of a run, another for another run in a folder of the same name."""
    path = folder / "page-id"
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Read the records of a metrics file; values that were not finite are None.

    A last line that a kill cut short is left out.

    Raises:
        RMDError: the file cannot be read, or another line is not a record.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
    except OSError as error:
        raise RMDError(f"cannot read {path}: {reason(error)}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines):  # every whole line ends with a line break, so this one is empty or cut short
            break
        try:
            row: dict[str, float | None] = _RECORD.validate_json(line)
        except ValidationError as error:
            raise RMDError(f"{path}, line {number} is not a record of metrics: remove that line") from error
        if row.get("iteration") is None:
            raise RMDError(f"{path}, line {number} does not say its iteration: remove that line")
        rows.append(row)
    return rows
