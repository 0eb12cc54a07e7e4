"""Trackers for Weights & Biases and Trackio, whose Python interfaces differ only in how a run is named."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from rmd.common.errors import RMDError
from rmd.common.files import write_text
from rmd.train.tracking import Tracker, run_disk_errors


class _Service(Tracker):
    """A run's page at a service; a resumed run continues its page."""

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

    def _names(self, folder: Path, page: str) -> dict[str, str]:
        """Return the arguments by which the service tells this run from others."""
        raise NotImplementedError


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
