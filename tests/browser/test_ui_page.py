"""The page of `rmd ui` in a real browser, with students of the scenes: every tab, wide and narrow, light and dark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect
from processes import serving

from rmd.cli.app import main

WAIT = 120_000
"""Milliseconds for which models may compute on a busy machine."""
SCRIPT = "<script>document.body.append('it ran'); fetch('http://127.0.0.1:9/x')</script>"
PROMPTS = ["a small blue plain ring at the bottom, on sand", "a big purple ringed ball on the right, by the sea"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two short runs of the scenes, and a page of results."""
    root = tmp_path_factory.mktemp("ui")
    for seed, name in enumerate(("a", "b")):
        settings = (
            f"train.seed={seed}", "train.iterations=2", "train.batch_size=2", "train.log_every=1",
            "train.sample_every=2",
        )  # fmt: skip
        overrides = [part for setting in settings for part in ("--set", setting)]
        assert main(["train", "scenes", *overrides, "--out", str(root / name)]) == 0
    (root / "compare").mkdir()
    (root / "compare" / "compare.html").write_text(f"<h1>Tables</h1>{SCRIPT}", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    arguments = (
        str(root / "a" / "student"), str(root / "b" / "student"), "--run", str(root / "a"),
        "--compare", str(root / "compare"), "--answers", str(root / "answers"), "--port", "0", "--no-browser",
    )  # fmt: skip
    with serving("-m", "rmd", "ui", *arguments, out=root / "log", OMP_NUM_THREADS="1") as (address, _):
        yield address


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport={"width": 1280, "height": 900})
    yield opened
    opened.close()


def visit(context: BrowserContext, url: str, tab: str) -> Page:
    """Open a tab of the page; errors of its scripts and requests to other places fail the test at once."""
    page = context.new_page()
    page.on("pageerror", lambda error: pytest.fail(f"a script failed: {error}"))
    page.on("request", lambda request: check_request(request.url, url))
    page.goto(url)
    page.get_by_role("tab", name=tab).click()
    return page


def check_request(asked: str, url: str) -> None:
    assert asked.startswith((url, "data:", "blob:")), f"the page asks for {asked}"


def generate(page: Page) -> None:
    """Sample the student and its teacher."""
    page.fill("#prompt textarea", PROMPTS[0])
    page.click("#generate")
    expect(page.locator("#tried figure")).to_have_count(1, timeout=WAIT)
    expect(page.locator("#tried figure")).to_have_count(2, timeout=WAIT)
    page.wait_for_timeout(500)  # the button does nothing while the last job ends


def width_of(page: Page, selector: str) -> int:
    """Return the width of a loaded picture in its own pixels."""
    picture = page.locator(selector).first
    expect(picture).to_have_js_property("complete", True)
    return int(picture.evaluate("picture => picture.naturalWidth"))


def test_a_student_beside_its_teacher_and_the_slider_over_its_steps(context: BrowserContext, url: str) -> None:
    page = visit(context, url, "Try")
    generate(page)
    expect(page.locator("#tried .lead")).to_contain_text("times as fast as its teacher")
    expect(page.locator("#tried figure").first).to_contain_text("4 network evaluations per sample")
    expect(page.locator("#tried figure").last).to_contain_text("50 network evaluations per sample")
    assert width_of(page, "#tried img") == 64
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowLeft")
    expect(page.locator("#tried figure").first).to_contain_text("after step 1 of 4")
    assert width_of(page, "#tried img") == 32
    expect(page.locator("#tried figure").last).to_contain_text("25 steps: the result")


def test_the_same_seed_gives_the_same_picture_and_an_error_is_a_sentence(context: BrowserContext, url: str) -> None:
    page = visit(context, url, "Try")
    generate(page)
    first = page.locator("#tried img").first.get_attribute("src")
    generate(page)
    assert page.locator("#tried img").first.get_attribute("src") == first
    page.get_by_label("Height").fill("65")
    page.click("#generate")
    expect(page.get_by_text("the final size, 65x64, is not divisible by 16: use 64x64")).to_be_visible(timeout=WAIT)


def test_two_visitors_are_served_one_after_the_other(context: BrowserContext, url: str) -> None:
    pages = [visit(context, url, "Try") for _ in range(2)]
    for page in pages:
        page.fill("#prompt textarea", PROMPTS[1])
        page.click("#generate")
    for page in pages:
        expect(page.locator("#tried figure")).to_have_count(2, timeout=WAIT)


def code_of(page: Page) -> Locator:
    return page.locator("#code input, #code textarea").first


def reopen(page: Page, comparison: str, code: str) -> None:
    """Open a comparison, and continue with a code."""
    page.locator("#comparison input").click()
    page.get_by_role("option", name=comparison).click()
    expect(page.locator("#pair")).to_contain_text("1 of 2")
    code_of(page).fill(code)
    code_of(page).press("Enter")
    expect(page.locator("#pair")).to_contain_text("2 of 2")


def test_a_blind_comparison_by_buttons_and_keys(
    context: BrowserContext, url: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = visit(context, url, "Compare")
    page.fill("#prompts textarea", "\n".join(PROMPTS))
    page.click("#make")
    pair = page.locator("#pair")
    expect(pair).to_contain_text("1 of 2", timeout=WAIT)
    expect(pair).not_to_contain_text("student")
    assert width_of(page, "#pair img") == 64
    page.wait_for_timeout(1100)  # a pair must be looked at for a second
    page.click("#vote-left")
    expect(pair).to_contain_text("2 of 2")
    code = code_of(page).input_value()
    page = visit(context, url, "Compare")
    reopen(page, "comparison-001", code)
    page.wait_for_timeout(1100)
    page.locator("#pair").click()
    page.keyboard.press("0")
    expect(page.locator("#pair")).to_contain_text("That was the last pair", timeout=WAIT)
    expect(page.locator("#results")).to_contain_text("2 votes of 1 person.", timeout=WAIT)
    expect(page.locator("#results")).to_contain_text("a/student")
    study = root / "answers" / "comparison-001" / "study"
    capsys.readouterr()
    assert main(["study", "analyse", str(study), "--draws", "100"]) == 0
    assert "2 votes" in capsys.readouterr().out
    (found,) = json.loads((study / "analysis.json").read_text(encoding="utf-8"))["pairs"]
    assert (found["wins"] + found["losses"], found["ties"]) == (1, 1)


def test_a_run_is_shown_as_it_goes_on(context: BrowserContext, url: str, root: Path) -> None:
    page = visit(context, url, "Watch")
    run = page.locator("#run")
    expect(run).to_contain_text("2 of 2", timeout=WAIT)
    expect(run).to_contain_text("The run has finished.")
    expect(run.locator(".charts img")).to_have_count(3)
    expect(page.locator("#pictures")).to_contain_text("Pictures of iteration 2")
    metrics = root / "a" / "metrics.jsonl"
    before = metrics.read_text(encoding="utf-8")
    last = json.loads(before.splitlines()[-1]) | {"iteration": 3}
    new = root / "a" / "pictures" / "samples-000003.png"
    try:
        Image.new("RGB", (8, 8), "red").save(new)
        metrics.write_text(before + json.dumps(last) + "\n", encoding="utf-8")
        expect(run).to_contain_text("3 of 2", timeout=WAIT)
        expect(page.locator("#pictures")).to_contain_text("Pictures of iteration 3")
        assert width_of(page, "#pictures img") == 8
        page.locator("#iteration input").click()
        page.get_by_role("option", name="2", exact=True).click()
        expect(page.locator("#pictures")).to_contain_text("Pictures of iteration 2")
    finally:
        metrics.write_text(before, encoding="utf-8")
        new.unlink()


def test_a_page_of_tables_cannot_run_anything(context: BrowserContext, url: str) -> None:
    page = visit(context, url, "Tables")
    frame = page.frame_locator("#table iframe")
    expect(frame.locator("h1")).to_have_text("Tables")
    page.wait_for_timeout(500)
    expect(frame.locator("body")).not_to_contain_text("it ran")
    alone = context.new_page()  # nor if it is opened by itself
    alone.goto(f"{url}/pages/0")
    expect(alone.locator("h1")).to_have_text("Tables")
    expect(alone.locator("body")).not_to_contain_text("it ran")


@pytest.mark.parametrize("path", ["gradio_api/upload", "gradio_api/file=pyproject.toml", "gradio_api/info", "docs"])
def test_addresses_that_the_page_does_not_need_do_not_exist(context: BrowserContext, url: str, path: str) -> None:
    assert context.request.get(f"{url}/{path}").status == 404
    assert context.request.post(f"{url}/{path}").status == 404


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_every_tab_fits_the_screen(
    browser: Browser, url: str, width: int, height: int, scheme: Literal["light", "dark"], tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = visit(context, url, "Try")
    generate(page)
    for tab in ("Try", "Compare", "Watch", "Tables"):
        name = page.get_by_role("tab", name=tab)
        expect(name).to_be_visible()
        name.click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        page.screenshot(path=tmp_path / f"{tab}.png", full_page=True)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    context.close()


def test_a_public_page_asks_for_its_password(browser: Browser, root: Path) -> None:
    arguments = ("--compare", str(root / "compare"), "--host", "0.0.0.0", "--port", "0", "--no-browser")
    with serving("-m", "rmd", "ui", *arguments, out=root / "public", RMD_UI_PASSWORD="geheim") as (address, _):
        local = address.replace("0.0.0.0", "127.0.0.1")
        stranger = browser.new_context()
        assert stranger.request.get(local).status == 401
        stranger.close()
        friend = browser.new_context(http_credentials={"username": "me", "password": "geheim"})
        page = visit(friend, local, "Tables")
        expect(page.frame_locator("#table iframe").locator("h1")).to_have_text("Tables")
        friend.close()


def test_the_page_works_without_the_teacher(browser: Browser, root: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(root / "a" / "student", tmp_path / "alone"))
    config = json.loads((alone / "rmd_config.json").read_text(encoding="utf-8"))
    (alone / "rmd_config.json").write_text(json.dumps(config | {"teacher": None}), encoding="utf-8")
    with serving("-m", "rmd", "ui", str(alone), "--port", "0", "--no-browser", out=tmp_path / "log") as (address, _):
        context = browser.new_context()
        page = visit(context, address, "Try")
        expect(page.locator("#beside")).to_contain_text("names no teacher")
        page.fill("#prompt textarea", PROMPTS[0])
        page.click("#generate")
        expect(page.locator("#tried figure")).to_have_count(1, timeout=WAIT)
        page.get_by_role("tab", name="Compare").click()
        expect(page.get_by_text("A comparison needs two models")).to_be_visible()
        context.close()
