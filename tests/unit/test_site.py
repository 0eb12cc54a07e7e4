"""The documentation site: every page is in its navigation, and every link leads to something that is there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import pytest

import rmd
from tools import recipes, site

NAVIGATION = (site.ROOT / "zensical.toml").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)\s#]+)")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "docs"
    site.prepare(folder)
    return folder


def test_the_navigation_has_every_page_and_no_other() -> None:
    named = re.findall(r'"([\w/.-]+\.md)"', NAVIGATION)
    assert len(named) == len(set(named))
    assert set(named) == set(site.pages().values()), "give the page a line in `nav` of zensical.toml"


def test_links_lead_to_files_of_the_site(out: Path) -> None:
    broken = []
    for page in out.rglob("*.md"):
        if "files" in page.relative_to(out).parts:
            continue  # shows a file as it is
        text = site.FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            if "://" not in target and not (page.parent / target).is_file():
                broken.append((page.relative_to(out).as_posix(), target))
    assert broken == []


def test_a_linked_file_has_a_page_that_shows_it(out: Path) -> None:
    shown = (out / "files" / "examples" / "metric.md").read_text(encoding="utf-8")
    assert "VARIETY = Metric(" in shown and "## pyproject.toml" in shown


def test_a_link_that_is_called_like_its_file_gets_the_title_of_the_page() -> None:
    names = site.pages()
    text = site.rewritten("([runs.md](runs.md#resume)), [this](../CHANGELOG.md)", "docs/api.md", names, set())
    assert text == "([Train a student](runs.md#resume)), [this](project/changelog.md)"
    code = "```\n[runs.md](runs.md)\n```"
    assert site.rewritten(code, "docs/api.md", names, set()) == code


def test_marks_of_the_pages_do_not_break_their_paragraphs(out: Path) -> None:
    """A comment at the beginning of a line would end the paragraph."""
    for page in ("findings.md", "index.md", "api.md"):
        assert "<!--" not in site.FENCE.sub("", (out / page).read_text(encoding="utf-8"))


def test_the_reference_has_every_public_name(out: Path) -> None:
    named = re.findall(r"^::: rmd\.(\w+)$", (out / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(set(rmd.__all__) - {"__version__"})


def test_no_page_of_the_site_takes_the_place_of_another_where_case_does_not_count(out: Path) -> None:
    paths = [posixpath.normcase(path.relative_to(out).as_posix().lower()) for path in out.rglob("*.*")]
    assert len(paths) == len(set(paths))


def test_the_table_of_recipes_is_that_of_the_files() -> None:
    text = recipes.PAGE.read_text(encoding="utf-8")
    assert recipes.fill(text) == text, "run python tools/recipes.py"
