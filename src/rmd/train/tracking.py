"""What a run writes about itself: `metrics.jsonl` always, TensorBoard events, and PNG panels."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard.writer import SummaryWriter

from rmd.errors import RMDError

MACHINE = ("seconds", "data_seconds", "images_per_second", "peak_memory_gb")
"""What in a record is of the machine and its clock; the rest is the run's, and comes again."""


def peak_memory_gb(device: torch.device) -> float:
    """The most that torch has held on a GPU, or the process in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


class Tracker:
    """Writes metrics and pictures of a run into its folder; a resumed run goes on where the file must continue."""

    def __init__(
        self, folder: Path, *, start: int, services: Sequence[str] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        """Open the run's files; records of iterations after the first `start` are dropped, to be made again.

        Args:
            services: `wandb` or `trackio`, to be told everything too, under the folder's name.
            config: what they show as the run's settings.

        Raises:
            RMDError: a service is not installed.
        """
        self._services = [Service(name, folder, config or {}) for name in services]
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["iteration"] <= start]
        partial = folder / f".{self.path.name}.partial"
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.replace(self.path)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append one record; values that are not finite are written as null."""
        record = {"iteration": iteration, **{k: v if np.isfinite(v) else None for k, v in values.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, iteration)
        for service in self._services:
            service.metrics(iteration, values)
        if "step" in values:  # each iteration trains one step, and the steps' gaps differ much
            self._events.add_scalar(f"gap/step-{values['step']:.0f}", values["gap"], iteration)

    def picture(self, name: str, iteration: int, image: Image.Image) -> Path:
        """Save `<name>-<iteration>.png` and show it in TensorBoard."""
        path = self.folder / "pictures" / f"{name}-{iteration:06d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
        self._events.add_image(name, np.asarray(image.convert("RGB")), iteration, dataformats="HWC")
        for service in self._services:
            service.picture(name, iteration, image)
        return path

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()
        for service in self._services:
            service.close()


class Service:
    """A run's page at Weights & Biases or Trackio, whose functions are alike."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            self._module: Any = importlib.import_module(name)
        except ImportError as error:
            raise RMDError(f"train.services: {name} needs `pip install 'rmd[track]'`") from error
        # a resumed run goes on with its page
        folder.mkdir(parents=True, exist_ok=True)
        page = _page_id(folder)
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
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Records of a metrics file; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
