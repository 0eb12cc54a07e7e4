"""Videos, which are made in the background: a request creates one, later ones ask for its state and its file."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from rmd.common.clips import save_clip
from rmd.sample.samplers import Media
from rmd.serve.batching import Item
from rmd.serve.engine import Served, written
from rmd.serve.limits import Limits
from rmd.serve.problems import Problem
from rmd.serve.scheduler import Scheduler
from rmd.serve.store import Store, VideoRecord

LOG = logging.getLogger(__name__)


class Videos:
    """The videos of a server."""

    def __init__(self, store: Store, scheduler: Scheduler, students: Mapping[str, Served], limits: Limits) -> None:
        self.store, self.scheduler, self.students, self.limits = store, scheduler, students, limits
        self._items: dict[str, Item] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def create(self, student: Served, item: Item) -> dict[str, Any]:
        """Record a video that is in the queue, so that it survives the server, and return its description."""
        shape = item.shape
        record = VideoRecord(
            id=f"video_{secrets.token_hex(16)}", server=self.store.server, status="queued", model=student.name,
            prompt=item.prompt, seed=item.seed, height=shape.height, width=shape.width, frames=shape.frames,
            fps=student.fps, created_at=int(time.time()),
        )  # fmt: skip
        recorded = asyncio.create_task(asyncio.to_thread(self.store.write, record))
        self._start(record, item, recorded)
        await recorded
        return self.describe(record)

    async def resume(self) -> int:
        """Make the videos that servers of the same folder left unfinished; return their number."""
        records = await asyncio.to_thread(self.store.claim)
        for record in records:
            student = self.students.get(record.model)
            if student is None or record.shape not in student.shapes:
                await self._end(record, error="the server that accepted this video has ended")
            else:
                self._start(record, self.scheduler.submit(record.shape, record.prompt, [record.seed], forced=True)[0])
        return len(records)

    async def find(self, identity: str) -> VideoRecord:
        """Return a video's record; raise a problem of status 404 if there is none."""
        record = await asyncio.to_thread(self.store.read, identity)
        if record is None:
            raise Problem(404, f"there is no video {identity[:60]}", "not_found", param="video_id")
        return record

    async def page(self, *, limit: int, after: str | None, order: str) -> dict[str, Any]:
        """Return descriptions of videos, as OpenAI's lists are."""
        records = await asyncio.to_thread(self.store.records)
        if order == "asc":
            records.reverse()
        places = {record.id: place for place, record in enumerate(records, start=1)}
        start = 0 if after is None else places.get(after, len(records))
        shown = [self.describe(record) for record in records[start : start + limit]]
        ends = (
            {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
        )
        return {"object": "list", "data": shown, "has_more": len(records) > start + limit, **ends}

    async def file(self, identity: str) -> Path:
        """Return the file of a video; raise a problem if it is not finished, failed, or has been removed."""
        record = await self.find(identity)
        if record.status == "failed":
            raise Problem(400, f"this video failed: {record.error}", "video_failed", param="video_id")
        if record.status != "completed":
            raise Problem(409, "this video is not finished: ask again later", "not_ready", param="video_id")
        path = await asyncio.to_thread(self.store.file, self.store.video(identity).name)
        if path is None:
            raise Problem(404, "this video has been removed, since its time was over", "expired", param="video_id")
        return path

    async def delete(self, identity: str) -> dict[str, Any]:
        """Remove a video; one that is not finished is given up."""
        await self.find(identity)
        if identity in self._tasks:
            self._items[identity].reply.cancel()  # no effect if the samples are there, and only the file is written
            await asyncio.wait([self._tasks[identity]])
        await asyncio.to_thread(self.store.delete, identity)
        return {"id": identity, "object": "video.deleted", "deleted": True}

    def describe(self, record: VideoRecord) -> dict[str, Any]:
        """Return a video as OpenAI describes it, with its seed."""
        item = self._items.get(record.id)
        share = 0.0 if item is None or item.progress is None else item.progress
        active = record.status == "queued" and item is not None and item.progress is not None
        done = record.completed_at
        return {
            "id": record.id, "object": "video", "model": record.model, "prompt": record.prompt, "seed": record.seed,
            "status": "in_progress" if active else record.status, "size": written(record.shape),
            "progress": 100 if record.status == "completed" else int(99 * share),
            "seconds": f"{record.frames / record.fps:g}", "created_at": record.created_at, "completed_at": done,
            "expires_at": None if done is None else done + int(self.store.keep),
            "error": None if record.error is None else {"code": "video_failed", "message": record.error},
            "remixed_from_video_id": None,
        }  # fmt: skip

    @property
    def idle(self) -> bool:
        """True if no video is being made or written."""
        return not self._tasks

    def _start(self, record: VideoRecord, item: Item, recorded: asyncio.Task[None] | None = None) -> None:
        task = asyncio.create_task(self._make(record, item, recorded))
        self._items[record.id], self._tasks[record.id] = item, task

        def forget(_: object) -> None:
            del self._items[record.id], self._tasks[record.id]

        task.add_done_callback(forget)

    async def _make(self, record: VideoRecord, item: Item, recorded: asyncio.Task[None] | None) -> None:
        """Wait for a video's record and then for its frames, and write its file."""
        if recorded is not None:
            await asyncio.wait([recorded])
            if recorded.exception() is not None:  # whoever asked for it is told
                item.reply.cancel()
                return
        try:
            (clip,) = await self.scheduler.result([item], self.limits.video_timeout)
        except Problem as problem:
            await self._end(record, error=problem.message)
            return
        saving = asyncio.create_task(
            asyncio.to_thread(_save, clip, self.store.video(record.id), fps=record.fps)
        )  # fmt: skip
        await asyncio.wait([saving])
        error = saving.exception()
        if error is not None:
            LOG.error("the file of a video cannot be written: %s", error)
        await self._end(record, error=None if error is None else "the server cannot write the file of this video")

    async def _end(self, record: VideoRecord, error: str | None = None) -> None:
        status = "completed" if error is None else "failed"
        ended = record.model_copy(update={"status": status, "completed_at": int(time.time()), "error": error})
        await asyncio.to_thread(self.store.write, ended)


def _save(clip: Media, path: Path, *, fps: int) -> None:
    """Write a clip; of a model of pictures, one of a single frame."""
    save_clip([clip] if isinstance(clip, Image.Image) else clip, path, fps=fps)
