"""The HTTP interface of a server, which is OpenAI's as far as pictures and videos go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request
from pydantic import ValidationError
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse, Response

from rmd.common.version import __version__
from rmd.common.web import FixedHeaders
from rmd.serve import problems
from rmd.serve.bodies import PARAMETERS, ImageBody, VideoBody
from rmd.serve.engine import Served
from rmd.serve.files import TYPES, entries
from rmd.serve.guards import ApiKey, BodyLimit
from rmd.serve.limits import Limits
from rmd.serve.metrics import Measured, Metrics
from rmd.serve.orders import image_order, video_order
from rmd.serve.problems import GONE, Problem
from rmd.serve.scheduler import Maker, Scheduler
from rmd.serve.store import Store
from rmd.serve.videos import Videos

HEADERS = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox"}
"""No answer is a page."""
_PRUNED_EVERY = 10.0
"""Seconds between two searches for files whose time is over."""
_POLL = 0.05
_BROKEN = 10
"""Batches that fail in a row, after which the device counts as broken."""
Result = TypeVar("Result")


class Service:
    """Everything behind the HTTP interface.

    Attributes:
        students: the students by name.
        scheduler, videos, metrics: the queue and its device, the videos, and the numbers for Prometheus.
    """

    def __init__(self, maker: Maker, store: Store, limits: Limits, *, url: str | None = None) -> None:
        self.students, self.store, self.limits, self.url = maker.students, store, limits, url
        self.metrics = Metrics()
        self.scheduler = Scheduler(maker, limits, self.metrics)
        self.videos = Videos(store, self.scheduler, self.students, limits)
        self.began = int(time.time())
        self._runner: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Make batches and remove old files during the block; unfinished videos of earlier servers come first."""
        with self.store.opened():
            self._runner = asyncio.create_task(self.scheduler.run())
            tasks = [self._runner, asyncio.create_task(self._prune())]
            await self.videos.resume()
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.to_thread(self.scheduler.close)

    async def drained(self) -> None:
        """Refuse new samples, and return when all that were accepted are done."""
        self.scheduler.draining = True
        while not (self.scheduler.idle and self.videos.idle):
            await asyncio.sleep(_POLL)

    @property
    def broken(self) -> bool:
        """True if no batches are made any more, or all of them have failed for some time."""
        stopped = self._runner is not None and self._runner.done()
        return stopped or self.scheduler.failures >= _BROKEN

    async def images(self, body: ImageBody, request: Request) -> JSONResponse:
        """Make pictures."""
        order = image_order(body, self.students, self.limits)
        items = self.scheduler.submit(order.shape, order.prompt, order.seeds)
        pictures = await self._while_connected(request, self.scheduler.result(items, self.limits.timeout))
        kind = body.output_format or "png"
        quality = 100 if body.output_compression is None else body.output_compression
        data = await asyncio.to_thread(
            entries, pictures, order.seeds, kind=kind, quality=quality, base=self._base(request),
            store=self.store if body.response_format == "url" else None,
        )  # fmt: skip
        size = f"{order.shape.width}x{order.shape.height}"
        return JSONResponse({"created": int(time.time()), "data": data, "output_format": kind, "size": size})

    async def create_video(self, request: Request) -> JSONResponse:
        """Accept a video."""
        order = video_order(await _video_body(request), self.students, self.limits)
        (item,) = self.scheduler.submit(order.shape, order.prompt, order.seeds)
        return JSONResponse(await self.videos.create(order.student, item))

    def model(self, student: Served) -> dict[str, Any]:
        """Return a student as OpenAI describes a model, with its sizes."""
        return {
            "id": student.name, "object": "model", "created": self.began, "owned_by": "rmd",
            "sizes": student.sizes, "output": "video" if student.moving else "image",
        }  # fmt: skip

    def _base(self, request: Request) -> str:
        return (self.url or str(request.base_url)).rstrip("/")

    async def _while_connected(self, request: Request, work: Awaitable[Result]) -> Result:
        """Wait for work as long as its client does; otherwise cancel it."""
        task, gone = asyncio.ensure_future(work), asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self.metrics.dropped.labels("disconnect").inc()
            raise Problem(GONE, "the client has gone", "client_closed_request")
        finally:
            task.cancel()
            gone.cancel()

    async def _prune(self) -> None:
        while True:
            await asyncio.wait([asyncio.create_task(asyncio.to_thread(self.store.prune))])
            await asyncio.sleep(_PRUNED_EVERY)


def make_app(service: Service, *, key: str | None = None) -> FastAPI:
    """Return the application of a server.

    Args:
        service: what answers.
        key: the API key that requests below /v1 must have; None: they need none.
    """
    limits = service.limits
    app = FastAPI(
        title="RMD", version=__version__, lifespan=service.running, docs_url=None, redoc_url=None,
        middleware=[
            Middleware(Measured, metrics=service.metrics),
            Middleware(FixedHeaders, headers=HEADERS, uncached=("/",)),
            Middleware(ApiKey, key=key),
            Middleware(BodyLimit, most=limits.max_body, seconds=limits.body_timeout),
        ],
    )  # fmt: skip
    problems.install(app, PARAMETERS)
    _add_models(app, service)
    _add_videos(app, service)
    _add_health(app, service)
    app.add_api_route("/v1/images/generations", service.images, methods=["POST"], response_model=None)

    @app.get("/files/{name}", response_model=None)
    async def file(name: str) -> Response:
        """Return a picture whose address an answer gave."""
        path = await asyncio.to_thread(service.store.file, name)
        if path is None or path.suffix == ".mp4":
            raise Problem(404, "there is no such file, or its time was over", "not_found")
        return FileResponse(path, media_type=TYPES[path.suffix[1:]])

    return app


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=None)
    async def models() -> JSONResponse:
        """List the students."""
        return JSONResponse({"object": "list", "data": [service.model(each) for each in service.students.values()]})

    @app.get("/v1/models/{name}", response_model=None)
    async def model(name: str) -> JSONResponse:
        """Describe a student."""
        if name not in service.students:
            raise Problem(404, f"there is no model {name[:60]}", "model_not_found", param="model")
        return JSONResponse(service.model(service.students[name]))


def _add_videos(app: FastAPI, service: Service) -> None:
    schema = VideoBody.model_json_schema()
    forms = {kind: {"schema": schema} for kind in ("multipart/form-data", "application/json")}
    app.add_api_route(
        "/v1/videos", service.create_video, methods=["POST"], response_model=None,
        openapi_extra={"requestBody": {"content": forms, "required": True}},
    )  # fmt: skip

    @app.get("/v1/videos", response_model=None)
    async def videos(
        limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> JSONResponse:  # fmt: skip
        """List videos, the newest first."""
        return JSONResponse(await service.videos.page(limit=limit, after=after, order=order))

    @app.get("/v1/videos/{video_id}", response_model=None)
    async def video(video_id: str) -> JSONResponse:
        """Describe a video and its progress."""
        return JSONResponse(service.videos.describe(await service.videos.find(video_id)))

    @app.delete("/v1/videos/{video_id}", response_model=None)
    async def delete(video_id: str) -> JSONResponse:
        """Remove a video, or give it up."""
        return JSONResponse(await service.videos.delete(video_id))

    @app.get("/v1/videos/{video_id}/content", response_model=None)
    async def content(video_id: str, variant: Literal["video"] = "video") -> Response:
        """Return the MP4 file of a finished video."""
        return FileResponse(await service.videos.file(video_id), media_type=TYPES["mp4"])


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=None)
    async def health() -> JSONResponse:
        """Answer as long as the server works."""
        if service.broken:
            raise Problem(503, "this server fails to make anything: restart it", "broken")
        return JSONResponse({"status": "ok", "version": __version__})

    @app.get("/ready", response_model=None)
    async def ready() -> JSONResponse:
        """Say whether the server accepts requests."""
        if service.scheduler.draining:
            raise Problem(503, "this server is about to end", "shutting_down")
        return JSONResponse({"status": "ready", "models": list(service.students)})

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Return the numbers for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _disconnected(request: Request) -> None:
    """Return when the client of a request whose body has been read has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _video_body(request: Request) -> VideoBody:
    """Return the body of a request for a video, which OpenAI's client sends as a form, and other programs as JSON."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        form = await request.form(max_files=1, max_fields=20)
        values: Any = dict(form)
        if not all(isinstance(value, str) for value in values.values()):
            raise problems.wrong("videos are made from prompts only: leave input_reference out", "input_reference")
        with suppress(ValueError):
            values |= {"seed": int(values["seed"])} if "seed" in values else {}
    else:
        with suppress(ValueError):
            values = None
            values = await request.json()
    try:
        return VideoBody.model_validate(values)
    except ValidationError as error:
        raise problems.of_validation(error.errors(include_url=False), PARAMETERS) from None
