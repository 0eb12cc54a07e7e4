"""Pages of results: which files they are, and that a page is served without any right to run or load something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from asgi import ask
from starlette.applications import Starlette

from rmd.common.errors import RMDError
from rmd.ui import pages as module
from rmd.ui.comparing import Comparisons
from rmd.ui.contents import Contents
from rmd.ui.fragments import frame_html
from rmd.ui.models import Models
from rmd.ui.pages import find_pages, read_page
from rmd.ui.routes import Files


def contents_of(folder: Path, *places: str) -> Contents:
    return Contents(Models([], device=torch.device("cpu")), Comparisons(folder / "answers"), None, find_pages(places))


def test_folders_of_comparisons_and_files_are_found(tmp_path: Path) -> None:
    page = tmp_path / "table.html"
    page.write_text("<p>table</p>", encoding="utf-8")
    assert find_pages([str(tmp_path), str(page)]) == {
        str(tmp_path / "compare.html"): tmp_path / "compare.html", str(page): page,
    }  # fmt: skip
    assert read_page(page) == b"<p>table</p>"


@pytest.mark.parametrize("name", ["none", "none.html", "notes.txt"])
def test_other_places_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(RMDError, match=r"is neither a folder nor a page: give the folder of rmd compare, or an \.html"):
        find_pages([str(tmp_path / name)])


def test_a_page_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.html").write_bytes(b"x" * 11)
    monkeypatch.setattr(module, "MAX_PAGE", 10)
    with pytest.raises(RMDError, match=r"big\.html is too large to be shown"):
        read_page(tmp_path / "big.html")


def test_a_page_can_run_and_load_nothing(tmp_path: Path) -> None:
    (tmp_path / "compare.html").write_text("<script>alert(1)</script>", encoding="utf-8")
    contents = contents_of(tmp_path, str(tmp_path))
    app = Starlette(routes=list(Files(contents).routes))
    address = contents.page_address(str(tmp_path / "compare.html"))
    answer = ask(app, address)
    policy = answer.headers["content-security-policy"]
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    assert policy.startswith("sandbox; default-src 'none';") and "script" not in policy
    assert '<iframe sandbox referrerpolicy="no-referrer" src="/pages/0"' in frame_html(address, "x")
    assert "&lt;b&gt;" in frame_html(address, "<b>") and "<b>" not in frame_html(address, "<b>")


def test_a_comparison_without_its_page_yet_says_so(tmp_path: Path) -> None:
    app = Starlette(routes=list(Files(contents_of(tmp_path, str(tmp_path))).routes))
    answer = ask(app, "/pages/0")
    assert answer.status == 404 and b"has no compare.html yet" in answer.content
    assert ask(app, "/pages/1").status == 404 and ask(app, "/pages/..%2Fx").status == 404


def test_pictures_are_served_from_the_shelf_alone(tmp_path: Path) -> None:
    contents = contents_of(tmp_path)
    app = Starlette(routes=list(Files(contents).routes))
    answer = ask(app, contents.shelf.put(b"<svg/>", "svg"))
    assert (answer.status, answer.content, answer.headers["content-type"]) == (200, b"<svg/>", "image/svg+xml")
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    for path in ("/shelf/none.png", "/answers/comparison-001/study.json", "/answers/../key.json"):
        assert ask(app, path).status == 404
