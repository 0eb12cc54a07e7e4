"""The server of a study: a page, the media, and three requests with which raters join, get a pair and vote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from rmd.common.web import FixedHeaders
from rmd.study.design import Task, files_of, tasks_of
from rmd.study.folder import Study
from rmd.study.store import CHOICES, Choice, Store

PAGE = Path(__file__).parent / "page"
PAGES = ("index.html", "study.js", "study.css")
"""The files of the page; the first is the page itself."""
MAX_BODY = 4096
"""Longest request in bytes."""
AHEAD = 2
"""Number of pairs whose files a page loads in advance."""
HEADERS = {"Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"}
"""A page is kept to itself by these."""


@dataclass(frozen=True)
class Desk:
    """Answers what raters ask; every method may be called from several threads."""

    study: Study
    store: Store

    @cached_property
    def files(self) -> frozenset[str]:
        """Names of the media files."""
        design = self.study.design
        return frozenset(name for files in (*design.files, *design.checks) for name in files)

    def about(self) -> dict[str, Any]:
        """Return what the first page says."""
        design = self.study.design
        return {
            "title": design.title,
            "media": design.media,
            "questions": [question.text for question in design.questions],
            "tasks": len(tasks_of(design, 0)),
            "seconds": design.min_seconds,
        }

    def join(self) -> dict[str, Any]:
        """Add a rater who has agreed to take part."""
        return {"code": self.store.join()[1]}

    def next(self, code: str) -> tuple[int, dict[str, Any]]:
        """Return a status and a rater's next pair, or that there is none."""
        rater = self.store.rater(code)
        if rater is None:
            return 404, {"error": "There is no participant with this code."}
        tasks, done = tasks_of(self.study.design, rater), self.store.done(rater)
        if done == len(tasks):
            return 200, {"finished": True, "done": done, "tasks": len(tasks)}
        self.store.show(rater, done)
        task = tasks[done]
        left, right = self._places(task)
        ahead = [place for later in tasks[done + 1 : done + 1 + AHEAD] for place in self._places(later)]
        return 200, {
            "finished": False, "done": done, "tasks": len(tasks), "question": task.question,
            "prompt": self.study.design.prompts[task.prompt], "left": left, "right": right, "ahead": ahead,
        }  # fmt: skip

    def vote(self, code: str, task: int, choice: Choice) -> tuple[int, dict[str, Any]]:
        """Store a vote; return a status and the next pair, or what is wrong."""
        rater = self.store.rater(code)
        if rater is None:
            return 404, {"error": "There is no participant with this code."}
        kept = self.store.vote(rater, task, choice, min_seconds=self.study.design.min_seconds)
        if kept == "early":
            return 425, {"error": "Please look at both for a moment longer."}
        if kept == "other":
            return 409, {"error": "This pair has been judged already."}
        return self.next(code)

    def _places(self, task: Task) -> tuple[str, str]:
        left, right = files_of(self.study.design, task)
        return f"/media/{left}", f"/media/{right}"


@dataclass(frozen=True)
class _Site:
    """The requests of a page, each of which is checked before the desk sees it."""

    desk: Desk

    async def page(self, request: Request) -> Response:
        name = request.path_params.get("name", PAGES[0])
        return FileResponse(PAGE / name) if name in PAGES else Response(status_code=404)

    async def media(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.desk.files:
            return Response(status_code=404)
        return FileResponse(self.desk.study.media / name, headers={"Cache-Control": "private, max-age=86400"})

    async def about(self, _: Request) -> Response:
        return JSONResponse(self.desk.about())

    async def join(self, request: Request) -> Response:
        if (await _body(request)).get("agreed") is not True:
            return JSONResponse({"error": "Nobody takes part without having agreed to it."}, 400)
        return JSONResponse(await run_in_threadpool(self.desk.join))

    async def next(self, request: Request) -> Response:
        code = (await _body(request)).get("code")
        if not isinstance(code, str):
            return JSONResponse({"error": "A participant's code is missing."}, 400)
        status, answer = await run_in_threadpool(self.desk.next, code)
        return JSONResponse(answer, status)

    async def vote(self, request: Request) -> Response:
        body = await _body(request)
        code, task = body.get("code"), body.get("task")
        choice = next((each for each in CHOICES if each == body.get("choice")), None)
        if not isinstance(code, str) or type(task) is not int or choice is None:
            return JSONResponse({"error": "A vote has a code, the number of the pair and a choice."}, 400)
        status, answer = await run_in_threadpool(self.desk.vote, code, task, choice)
        return JSONResponse(answer, status)


def make_app(study: Study, store: Store) -> Starlette:
    """Return the application of a study."""
    site = _Site(Desk(study, store))
    return Starlette(
        routes=[
            Route("/", site.page),
            Route("/page/{name}", site.page),
            Route("/media/{name}", site.media),
            Route("/api/about", site.about),
            Route("/api/join", site.join, methods=["POST"]),
            Route("/api/next", site.next, methods=["POST"]),
            Route("/api/vote", site.vote, methods=["POST"]),
        ],
        middleware=[Middleware(FixedHeaders, headers=HEADERS, uncached=("/api/",))],
    )


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request; an empty one if it has none."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            return {}
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
