"""The page of a study in a real browser: consent, votes by keyboard, another tab, a lost connection, a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from studies import served, small_study

from rmd.study.folder import Study
from rmd.study.store import Store

KEYS = {"1": "left", "ArrowLeft": "left", "2": "right", "ArrowRight": "right", "0": "tie"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("study"), "a", "b", prompts=6, tasks=5, checks=1)


@pytest.fixture(scope="module")
def url(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(study, tmp_path_factory.mktemp("server") / "log") as (address, _):
        yield address


def join(page: Page, url: str) -> str:
    """Agree to take part; return the code."""
    page.goto(url)
    start = page.locator("#start")
    expect(start).to_be_disabled()
    page.check("#agreed")
    start.click()
    expect(page.locator("#part")).to_be_visible()
    return page.locator("#part .mine").inner_text()


def vote(page: Page, key: str, number: int) -> None:
    """Press a key for a pair, counted from 1."""
    expect(page.locator("#pair .count")).to_have_text(f"{number} of 14")
    expect(page.locator("#choices button").first).to_be_enabled()
    page.keyboard.press(key)


def test_a_rater_votes_by_keyboard_and_continues_in_another_tab(browser: Browser, url: str, study: Study) -> None:
    context = browser.new_context()
    errors = list[str]()
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    code = join(page, url)
    page.keyboard.press("Enter")
    keys = list(KEYS) * 2
    for number, key in enumerate(keys[:4], start=1):
        vote(page, key, number)
    other = context.new_page()
    other.goto(url)  # the code is kept
    expect(other.locator("#part .question")).to_have_text("Which one looks better?")
    other.click("#go")
    for number, key in enumerate(keys[4:7], start=5):
        vote(other, key, number)
    expect(other.locator("#part .question")).to_have_text("Which one fits the text better?")
    other.keyboard.press("Enter")
    for number, key in enumerate(keys[7:10], start=8):
        vote(other, key, number)
    expect(other.locator("#pair .count")).to_have_text("11 of 14")
    # The first tab is behind: its vote for pair 5 is refused, and it goes to the current pair.
    vote(page, "0", 5)
    expect(page.locator("#part .count")).to_have_text("11 of 14")
    page.keyboard.press("Enter")
    for number in range(11, 15):
        vote(page, "2", number)
    expect(page.locator("#finished")).to_be_visible()
    store = Store(study.folder / "votes.sqlite", study.hash)
    rater = store.rater(code)
    choices = [vote.choice for vote in store.votes() if vote.rater == rater]
    assert choices[:10] == [KEYS[key] for key in keys[:10]] and choices[10:] == ["right"] * 4
    assert errors == []
    context.close()


def test_a_lost_connection_is_said_and_overcome(browser: Browser, url: str, study: Study) -> None:
    context = browser.new_context()
    page = context.new_page()
    code = join(page, url)
    page.click("#go")
    expect(page.locator("#choices button").first).to_be_enabled()
    context.set_offline(True)
    page.click("#choices button[data-choice=tie]")
    expect(page.locator("#pair .error")).to_contain_text("There is no connection")
    context.set_offline(False)
    expect(page.locator("#pair .count")).to_have_text("2 of 14", timeout=20_000)
    expect(page.locator("#pair .error")).to_have_text("")
    store = Store(study.folder / "votes.sqlite", study.hash)
    assert store.done(store.rater(code) or 0) == 1
    context.close()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_a_pair_fits_on_the_screen(browser: Browser, url: str, width: int, height: int, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    join(page, url)
    page.click("#go")
    expect(page.locator("#choices button").first).to_be_enabled()
    for part in ("#left img", "#right img", "#choices"):
        box = page.locator(part).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["height"] > 40 and box["y"] + box["height"] <= height, part
    page.screenshot(path=tmp_path / "pair.png")
    context.close()


def test_a_wrong_code_is_refused(browser: Browser, url: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    page.fill("#code", "nobody")
    page.keyboard.press("Enter")
    expect(page.locator("#welcome .error")).to_have_text("There is no participant with this code.")
    context.close()
