"""The files of a server: pictures that are fetched by their address, videos, and the records of videos.

Servers may share a folder. Then each of them answers for the videos of all, and one that starts takes over what a
server that was killed had accepted.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rmd.common.errors import RMDError
from rmd.common.files import locked, read_model, replacing, write_text
from rmd.common.typed import Strict
from rmd.serve.batching import Shape
from rmd.serve.bodies import Seed

LOG = logging.getLogger(__name__)
_NAME = re.compile(r"(image|video)_[0-9a-f]{32}\.(png|jpeg|webp|mp4)")
_VIDEO = re.compile(r"video_[0-9a-f]{32}")
_REST = re.compile(r"\.(image|video)_[0-9a-f]{32}\.\w+\.partial")
"""A file that a server was writing when it was killed."""
_SERVERS = "servers"
_CLAIM_SECONDS = 60.0
Status = Literal["queued", "completed", "failed"]
"""States of a record; that a video is being made is known to its server only."""


class VideoRecord(Strict):
    """Everything about a video that must survive its server."""

    version: Literal[1] = 1
    id: Annotated[str, Field(pattern=_VIDEO.pattern)]
    server: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """The server that makes it."""
    status: Status
    model: str
    prompt: str
    seed: Seed
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    frames: Annotated[int, Field(ge=1)]
    fps: Annotated[int, Field(ge=1)]
    created_at: int
    completed_at: int | None = None
    error: str | None = None

    @property
    def shape(self) -> Shape:
        """Its student and size."""
        return Shape(self.model, self.height, self.width, self.frames)


class Store:
    """A folder of results.

    Args:
        folder: the folder, which is created if necessary.
        keep: seconds for which files are kept.
        most: largest size of all files together in bytes; beyond it, the oldest are removed.
    """

    def __init__(self, folder: Path, *, keep: float, most: int) -> None:
        self.folder, self.keep, self.most = folder, keep, most
        self.server = secrets.token_hex(16)

    def check(self) -> None:
        """Raise RMDError if the folder cannot be written to."""
        with self.opened():
            pass

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Own the folder's part of this server during the block; others see by a lock that it is alive.

        Raises:
            RMDError: the folder cannot be written to.
        """
        with locked(self.folder / _SERVERS, f"{self.server}.lock"):
            try:
                yield
            finally:
                (self.folder / _SERVERS / f"{self.server}.lock").unlink(missing_ok=True)

    def put(self, content: bytes, suffix: str) -> str:
        """Write a picture and return its name, which nobody can guess."""
        name = f"image_{secrets.token_hex(16)}.{suffix}"
        with replacing(self.folder / name) as partial:
            partial.write_bytes(content)
        return name

    def file(self, name: str) -> Path | None:
        """Return the file of a result, or None if there is none of this name."""
        path = self.folder / name
        return path if _NAME.fullmatch(name) and path.is_file() else None

    def video(self, identity: str) -> Path:
        """Return the place of a video's file."""
        return self.folder / f"{identity}.mp4"

    def write(self, record: VideoRecord) -> None:
        """Write a video's record."""
        write_text(self._record(record.id), record.model_dump_json(indent=1) + "\n")

    def read(self, identity: str) -> VideoRecord | None:
        """Return a video's record, or None if there is none, or a damaged one."""
        if not _VIDEO.fullmatch(identity) or not self._record(identity).is_file():
            return None
        try:
            return read_model(self._record(identity), VideoRecord)
        except RMDError as error:
            LOG.warning("%s", error)
            return None

    def records(self) -> list[VideoRecord]:
        """Return all records, the newest first."""
        found = (self.read(path.stem) for path in self.folder.glob("video_*.json"))
        return sorted((record for record in found if record), key=lambda each: (-each.created_at, each.id))

    def delete(self, identity: str) -> bool:
        """Remove a video and its record; return whether there was one."""
        if self.read(identity) is None:
            return False
        for path in (self._record(identity), self.video(identity)):
            path.unlink(missing_ok=True)
        return True

    def claim(self) -> list[VideoRecord]:
        """Take over unfinished videos of servers that have ended, and return their records, the oldest first."""
        claimed = []
        with locked(self.folder, "claim.lock", wait=_CLAIM_SECONDS):
            for record in reversed(self.records()):
                if record.status == "queued" and self._has_ended(record.server):
                    claimed.append(record.model_copy(update={"server": self.server}))
                    self.write(claimed[-1])
        return claimed

    def prune(self, now: float | None = None) -> None:
        """Remove results that are older than `keep`, and the oldest ones beyond the size `most`."""
        now = time.time() if now is None else now
        ages: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another server was quicker
                if self._may_go(path):
                    ages.append((path.stat().st_mtime, path.stat().st_size, path))
        left = sum(size for _, size, _ in ages)
        for changed, size, path in sorted(ages, key=lambda each: each[0]):
            if now - changed > self.keep or left > self.most:
                path.unlink(missing_ok=True)
                left -= size

    def _record(self, identity: str) -> Path:
        return self.folder / f"{identity}.json"

    def _may_go(self, path: Path) -> bool:
        """Return whether a file is a result, the record of a video that is not to be made any more, or a rest."""
        if _VIDEO.fullmatch(path.stem):
            record = self.read(path.stem)
            return record is None or record.status != "queued"
        return bool(_NAME.fullmatch(path.name) or _REST.fullmatch(path.name))

    def _has_ended(self, server: str) -> bool:
        if server == self.server:
            return False
        try:
            with locked(self.folder / _SERVERS, f"{server}.lock"):
                (self.folder / _SERVERS / f"{server}.lock").unlink(missing_ok=True)
        except RMDError:
            return False
        return True
