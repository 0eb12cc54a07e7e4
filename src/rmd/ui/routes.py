"""The addresses of the page that gradio does not know: what was generated, pairs of comparisons, pages of results."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from rmd.common.errors import RMDError
from rmd.ui.contents import ANSWERS, PAGES, Contents
from rmd.ui.fragments import missing_html
from rmd.ui.pages import POLICY, read_page
from rmd.ui.shelf import PLACE

_ALONE = {"Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'"}
"""Headers of pictures: an SVG file that is opened by itself runs nothing, either."""


@dataclass(frozen=True)
class Files:
    """Answers requests for files; an address leads to what the page itself has shown, and to no other file."""

    contents: Contents

    @property
    def routes(self) -> list[Route]:
        """The routes of all addresses."""
        return [
            Route(f"{PLACE}/{{name}}", self.kept),
            Route(f"{ANSWERS}/{{comparison}}/{{name}}", self.answer),
            Route(f"{PAGES}/{{number:int}}", self.page),
        ]

    def kept(self, request: Request) -> Response:
        """Return a picture or a clip that is on the shelf."""
        found = self.contents.shelf.get(request.path_params["name"])
        if found is None:
            return PlainTextResponse("This picture is not kept any more: generate it again.", 404)
        content, kind = found
        return Response(content, media_type=kind, headers=_ALONE | {"Cache-Control": "private, max-age=86400"})

    def answer(self, request: Request) -> Response:
        """Return a file of a comparison that its design names."""
        name = request.path_params["name"]
        try:
            desk = self.contents.comparisons.desk(request.path_params["comparison"])
        except RMDError as error:
            return PlainTextResponse(str(error), 404)
        if name not in desk.files:
            return PlainTextResponse("There is no such file.", 404)
        return FileResponse(desk.study.media / name, headers=_ALONE)

    def page(self, request: Request) -> Response:
        """Return a page of results, which can run nothing and load nothing."""
        paths, number = list(self.contents.pages.values()), request.path_params["number"]
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
        try:
            if number >= len(paths):
                raise RMDError("there is no such page")
            return Response(read_page(paths[number]), media_type="text/html", headers=headers)
        except RMDError as error:
            return HTMLResponse(missing_html(str(error)), 404, headers)
