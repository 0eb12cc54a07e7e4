"""The report's page: what it shows, in which order, and that any name in it is text."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image
from reports import NAMES, PROMPTS, Page, grids, moving, panel, picture, printed, report, row, write

from rmd.common.pictures import png, to_image
from rmd.evaluation.rows import Check, Measured, Report
from rmd.report import markdown_table, write_report
from rmd.report.tables import SMOKE


def test_page_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path) -> None:
    page = write(tmp_path, report())
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object"}
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "://" not in html and "@import" not in html and "url(" not in html


def test_page_shows_every_row_prompt_check_and_version(tmp_path: Path) -> None:
    given = report()
    page = write(tmp_path, given)
    words = [row.label for row in given.rows] + list(given.prompts)
    words += ["✓ met", "✗ missed", "Targets: 1 of 2 met", "speed-up: 19.1", "minutes <all>: 11.4"]
    words += ["2.13.0", "11 min 23 s", "1.94 GB", "3.1%", "</pre><b>", "1024 samples", "seed 7", "shape b"]
    words += ["not CLIP, KID or FID scores"]
    words += ["-0.04[-0.50, 0.46]", "407[361, 453]", "59.1%[58.0%, 59.5%]", "4 steps, 32x32, then 64x64 pixels"]
    assert [word for word in words if word not in page.text] == []


def test_page_begins_with_every_prompts_sample_of_every_row(tmp_path: Path) -> None:
    page, given = write(tmp_path, report()), grids()
    expected = [(name, index) for index in range(len(PROMPTS)) for name in NAMES]
    for image, (name, index) in zip(page.images, expected, strict=False):
        assert picture(image["src"]) == to_image(given[name][index]).tobytes()
        assert image["alt"] == image["title"] == f"Label of {name} <{NAMES.index(name)}>: {PROMPTS[index]}"


def test_page_shows_the_training_and_the_plan_in_order(tmp_path: Path) -> None:
    page = write(tmp_path, report())
    rest = page.images[len(PROMPTS) * len(NAMES) :]
    alts = [image["alt"] or "" for image in rest]
    assert alts[0] == "Loss over the iterations"
    assert alts[1].startswith("Samples at iteration 200") and picture(rest[1]["src"]) == panel(9).tobytes()
    assert alts[2].startswith("Samples at iteration 100") and picture(rest[2]["src"]) == panel(8).tobytes()
    assert alts[3].startswith("logSNR") and picture(rest[3]["src"]) == panel(7).tobytes()
    assert len(rest) == 4


def test_page_of_a_smoke_run_says_so_first_and_claims_nothing(tmp_path: Path) -> None:
    smoke, real = write(tmp_path / "smoke", report(quick=True)), write(tmp_path / "real", report())
    assert smoke.text.strip().startswith("Smoke run, numbers mean nothing.")
    assert SMOKE in smoke.text and "The distilled student needs" not in smoke.text
    assert "moke run" not in real.text and "The distilled student needs" in real.text


def test_page_without_optional_parts_is_whole(tmp_path: Path) -> None:
    empty = report().model_dump() | {"checks": [], "history": [], "prompts": [], "rows": [row("other", 0)]}
    path = write_report(Report.model_validate(empty), {}, [], png(panel(7)), tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    assert "Targets" not in page.text and "Training" not in page.text
    assert len(page.images) == 1


HOSTILE = (
    "</title></style></script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "--wide: 1px; background: url(http://evil.example)",
    "{{ 7 * 7 }}{% for x in () %}{# c #}",
    "&amp; &lt;b&gt; <!-- ]]>",
    "</pre></td></li></p><h2>not a heading</h2>",
    "$x$ \\frac \u202e\u2028 #",
    "",
)


def with_names(name: str) -> Report:
    """Return a report with a name in every text field."""
    given = report()
    rows = [
        row.model_copy(
            update={
                "label": name, "measures": row.measures | {"attributes": Measured(value=0.5, parts={name: 0.5})},
            }
        )
        for row in given.rows
    ]  # fmt: skip
    return given.model_copy(
        update={
            "rows": rows,
            "checks": [Check(name=name, target=name, measured=1.0, passed=False)],
            "config": {"name": name, name: [name]},
            "versions": {name: name},
            "prompts": [name] * len(PROMPTS),
        }
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a report whose names need no escaping."""
    return write(tmp_path_factory.mktemp("plain"), with_names("plain"))


@pytest.mark.parametrize("name", HOSTILE)
def test_page_shows_any_name_as_text(name: str, plain: Page, tmp_path: Path) -> None:
    page = write(tmp_path / "a", with_names(name))
    assert page.elements == plain.elements
    assert page.addresses == plain.addresses
    assert page.text.count(name) >= plain.text.count("plain") - 4  # the recipe is YAML, which quotes some names
    html = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "url(http" not in html.partition("</style>")[0]


def test_a_report_of_clips_says_how_they_move_and_shows_them_moving(tmp_path: Path) -> None:
    given = moving()
    assert given.moving and not report().moving
    clips = {name: grid[:, :, None].expand(-1, -1, 3, -1, -1).clone() for name, grid in grids().items()}
    clips["rmd"][:, :, 1] = 0
    path = write_report(given, clips, [], png(panel(7)), tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    for words in ("Motion right", "Speed right", "Flicker", "0.37%", "Kernel distance of changes", "s/clip, denoiser"):
        assert words in page.text
    assert "s/image" not in page.text.partition("What the columns mean")[0]
    measured = path.read_text(encoding="utf-8").partition("What was measured")[2].partition("What the columns mean")[0]
    assert measured.count("<table>") == 2  # motion is seen without scrolling
    sources = [image["src"] or "" for image in page.images]
    moving_ones = [source for source in sources if source.startswith("data:image/webp;base64,")]
    assert len(moving_ones) == len(NAMES) * len(PROMPTS)
    with Image.open(io.BytesIO(base64.b64decode(moving_ones[-1].partition(",")[2]))) as clip:
        assert clip.n_frames == 3
    text = markdown_table(given)
    assert "| motion | speed | moves | flicker | of changes |" in text
    assert "| 90.0% | 61.0% | 1.04 | 0.37 | 12.3 |" in text
    said = printed(given)
    assert "…" not in said and max(map(len, said.splitlines())) <= 100
    assert "what changes from frame to frame" in " ".join(said.split())
    of_ours = [line.split() for line in said.splitlines() if line.startswith("rmd ")]
    assert of_ours[1] == ["rmd", f"{0.9 - 0.1 * NAMES.index('rmd'):.1%}", "61.0%", "1.04", "0.37", "12.3"]
