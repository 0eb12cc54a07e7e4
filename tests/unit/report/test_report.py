"""The report: what it accepts, what its tables and its page say, and how it is written."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.common.pictures import png, to_image
from rmd.common.text import one_line
from rmd.core.noise import FlowSchedule
from rmd.core.plan import build_plan
from rmd.evaluate.rows import Check, Measured, Report, Row
from rmd.report import markdown_table, print_table, write_report
from rmd.report.tables import MISSING, SMOKE, decimals, duration, fixed, percent, significant

NAMES = ("teacher", "teacher-4", "cascade-undistilled", "teacher-low", "rmd")
VOID = {"meta", "img", "source"}
PROMPTS = [f"prompt {index}, <script>alert('{index}')</script> & \"quotes\"" for index in range(10)]


def ends(value: float, low: float, high: float, **parts: float) -> Measured:
    """Return a measured value with its interval."""
    return Measured(value=value, low=low, high=high, parts=parts)


def row(name: str, position: int) -> Row:
    """Return a row whose numbers all differ from those of the others."""
    parts = {"layout": 0.5 + 0.01 * position} | ({"shape_b": 0.25} if position else {})
    share = 0.1 * position
    return Row(
        name=name,
        label=f"Label of {name} <{position}>",
        nfe=50 - 9 * position,
        seconds_per_image=0.091 / (position + 1),
        speedup=position + 1.04,
        seconds_end_to_end=0.0952 / (position + 1),
        measures={
            "attributes": ends(0.991 - share, 0.98 - share, 0.9951 - share, **parts),
            "kernel_distance": ends(101.7 * position - 0.04, 90.3 * position - 0.5, 113.1 * position + 0.46),
            "kernel_distance_to_teacher": ends(61.7 * position, 50.3 * position, 73.1 * position + 0.1),
            "frechet_distance": Measured(value=38.4 + position),
            "high_frequency": Measured(value=1.02 - share),
            "diversity": Measured(value=21.3 - position),
        },
    )


def report(*, quick: bool = False, frames: int = 1) -> Report:
    plan = build_plan(FlowSchedule(), steps=4, sides=[(32, 32), (64, 64)], thresholds=[-1.0], frames=frames)
    return Report(
        rows=[row(name, position) for position, name in enumerate(NAMES)],
        checks=[
            Check(name="speed-up", target="at least 15", measured=19.13, passed=True),
            Check(name="minutes <all>", target="below 10", measured=11.4, passed=False),
        ],
        quick=quick,
        seconds=683.2,
        peak_memory_gb=1.944,
        config={"name": "scenes", "plan": {"sides": [32, 64]}, "note": "</pre><b>"},
        versions={"torch": "2.13.0", "rmd": "0.1.0"},
        plan=plan.to_dict(),
        prompts=PROMPTS,
        history=[{"iteration": 10, "student_loss": 0.5, "gap": None}, {"iteration": 20, "student_loss": 0.4}],
        n=1024,
        seed=7,
        overhead=0.031,
    )


def grids(count: int = len(PROMPTS)) -> dict[str, Tensor]:
    """Different pictures for every row and prompt."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8) for name in NAMES}


def panel(shade: int) -> Image.Image:
    return Image.new("RGB", (16, 10), (shade, shade, shade))


class Page(HTMLParser):
    """Reads a page, failing on a tag that is not closed in order; collects what tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.elements.append((tag, tuple(values)))
        self.addresses += [value for key in ("src", "srcset", "href") if (value := values.get(key))]
        if tag == "img":
            self.images.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def write(folder: Path, given: Report) -> Page:
    path = write_report(given, grids(), [(200, panel(9)), (100, panel(8))], png(panel(7)), folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def picture(address: str | None) -> bytes:
    """Pixels of a PNG in a data address."""
    assert address is not None and address.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return image.tobytes()


# --- the data -------------------------------------------------------------------------------------


def test_report_survives_json() -> None:
    given = report()
    assert Report.model_validate_json(given.model_dump_json()) == given


def test_report_is_read_from_its_file_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    write(tmp_path, report())
    path = tmp_path / "report.json"
    assert read_model(path, Report) == report()
    written = json.loads(path.read_text(encoding="utf-8"))
    for change, sentence in (
        ({"n": "1024"}, "n should be a whole number, but is '1024'"),
        ({"quick": 1}, "quick should be true or false, but is 1"),
        ({"seconds": None}, "seconds should be a number, but is empty"),
        ({"prompts": "a prompt"}, "prompts should be "),
        ({"versions": {"torch": 2}}, "versions.torch should be text, but is 2"),
        ({"speed": 1}, "there is no key speed (did you mean 'seed'?)"),
    ):
        path.write_text(json.dumps(written | change), encoding="utf-8")
        with pytest.raises(RMDError) as error:
            read_model(path, Report)
        assert str(error.value).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": "abc"},
        {"n": "3"},
        {"n": True},
        {"quick": "yes"},
        {"speed": 3},
        {"seconds": float("nan")},
        {"n": 0},
        {"checks": [{"name": "speed", "target": "15", "measured": "fast", "passed": True}]},
    ],
)
def test_report_refuses_what_it_cannot_show(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        Report.model_validate(report().model_dump() | change)


def test_report_refuses_two_rows_of_one_name_and_a_broken_plan() -> None:
    data = report().model_dump()
    with pytest.raises(RMDError, match="'rmd' comes twice"):
        Report.model_validate(data | {"rows": [data["rows"][4], data["rows"][4]]})
    with pytest.raises(RMDError, match="the plan: stages is missing"):
        Report.model_validate(data | {"plan": {}})


# --- numbers --------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-6))
def test_significant_digits_are_right_and_plain(value: float) -> None:
    text = significant(value)
    assert re.fullmatch(r"-?\d+(\.\d+)?", text)
    assert float(text) == pytest.approx(value, rel=5.1e-3)


def test_numbers_as_written() -> None:
    assert [significant(v) for v in (0, 0.0047812, 19.13, 1234.5)] == ["0", "0.00478", "19.1", "1234"]
    assert [fixed(-0.04), fixed(0.25, 2), percent(0.9756), percent(1)] == ["0.0", "0.25", "97.6%", "100.0%"]
    assert [decimals((-0.5, 0.4)), decimals((-20.0, 1.0)), decimals((90.0, 113.0))] == [2, 1, 0]
    assert [duration(s) for s in (48.4, 683.2, 7385, 59.7)] == ["48 s", "11 min 23 s", "2 h 3 min", "1 min 0 s"]


# --- tables ---------------------------------------------------------------------------------------


def printed(given: Report, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_table(given, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_printed_table_is_whole_in_100_columns() -> None:
    lines = printed(report()).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    by_name = {words[0]: line for line in lines if (words := line.split()) and words[0] in NAMES}
    assert tuple(by_name) == NAMES
    assert by_name["rmd"].split() == [
        "rmd",
        "14",
        "0.0182",
        "5.0x",
        "59.1%",
        "407",
        "[361,",
        "453]",
        "247",
        "0.62",
        "17.3",
    ]
    assert by_name["teacher"].split()[5:8] == ["-0.04", "[-0.50,", "0.46]"]
    assert "pass  speed-up: 19.1 (target: at least 15)" in lines
    assert "MISS  minutes <all>: 11.4 (target: below 10)" in lines


def test_a_printed_table_has_any_name_and_no_terminal_codes() -> None:
    for name in ("[bold]x[/] [/not closed]", "\x1b[31m red \x1b]0;title\x07", "a\nb", "\u202e"):
        rows = [row(name, 0), *report().rows[1:]]
        checks = [Check(name=name, target=name, measured=1.0, passed=True)]
        said = printed(report().model_copy(update={"rows": rows, "checks": checks}), 200)
        assert one_line(name) in said and "\x1b" not in said and "\x07" not in said
        assert len(said.splitlines()) == len(printed(report().model_copy(update={"checks": checks}), 200).splitlines())


def test_a_row_without_a_metric_has_a_dash_in_every_table(tmp_path: Path) -> None:
    given = report()
    few = {name: each for name, each in given.rows[1].measures.items() if name != "diversity"}
    rows = [given.rows[0], given.rows[1].model_copy(update={"measures": few}), *given.rows[2:]]
    fewer = given.model_copy(update={"rows": rows})
    assert printed(fewer).count(MISSING) == 1 and markdown_table(fewer).count(MISSING) == 1
    assert write(tmp_path, fewer).text.count(MISSING) == 1
    none = given.model_copy(update={"rows": [each.model_copy(update={"measures": {}}) for each in given.rows]})
    assert "diversity" not in printed(none).lower() and write(tmp_path, none).text


def test_smoke_run_is_printed_as_one() -> None:
    assert printed(report(quick=True)).startswith(SMOKE)
    assert SMOKE not in printed(report())


def test_markdown_table_has_a_cell_for_every_measure() -> None:
    data = report().model_dump()
    data["rows"][0]["label"] = "a | b"
    head, rule, *body = markdown_table(Report.model_validate(data)).splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (head, rule, *body)]
    assert {len(line) for line in cells} == {9}
    assert head.startswith("|  | NFE | s/image | speed-up | all right | kernel distance | to the teacher |")
    assert set(rule) == set("| -:")
    assert cells[2][0] == " a \\| b "
    assert cells[6][:2] == [" **Label of rmd \\<4>** ", " **14** "]


# --- the page -------------------------------------------------------------------------------------


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
    """A report with a name in every field that holds text."""
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


@pytest.mark.parametrize("name", HOSTILE)
def test_page_shows_any_name_as_text(name: str, tmp_path: Path) -> None:
    page, plain = write(tmp_path / "a", with_names(name)), write(tmp_path / "b", with_names("plain"))
    assert page.elements == plain.elements
    assert page.addresses == plain.addresses
    assert page.text.count(name) >= plain.text.count("plain") - 4  # the recipe is YAML, which quotes some names
    html = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "url(http" not in html.partition("</style>")[0]


# --- files ----------------------------------------------------------------------------------------


def test_json_has_the_agreed_keys(tmp_path: Path) -> None:
    write(tmp_path, report())
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {"rows", "seconds", "peak_memory_gb", "config", "versions", "checks", "quick"} <= set(data)
    metrics = {
        "attributes", "kernel_distance", "kernel_distance_to_teacher", "frechet_distance", "high_frequency",
        "diversity",
    }  # fmt: skip
    assert [row["name"] for row in data["rows"]] == list(NAMES)
    assert all({"name", "nfe", "seconds_per_image", "speedup"} <= set(row) for row in data["rows"])
    assert all(metrics == set(row["measures"]) for row in data["rows"])
    assert set(data["rows"][1]["measures"]["attributes"]) == {"value", "low", "high", "parts"}
    assert data["config"]["plan"] == {"sides": [32, 64]}
    assert data["history"][0]["gap"] is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tdm": grids()["rmd"]}, "no row of that name"),
        ({"rmd": grids(3)["rmd"]}, "3 pictures for 10 prompts"),
        ({"rmd": grids()["rmd"].float()}, "float32"),
    ],
)
def test_wrong_pictures_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(RMDError, match=message):
        write_report(report(), wrong, [], png(panel(7)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_appear_by_renaming_and_a_failure_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, report())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.html", "report.json"}
    real, written = Path.write_text, []

    def fill_the_disk(self: Path, text: str, encoding: str) -> int:
        written.append(self.name)
        if "html" in self.name:
            raise OSError(28, "No space left on device")
        return real(self, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, report(quick=True))
    assert written == [".report.json.partial", ".report.html.partial"]
    assert {path.name for path in tmp_path.iterdir()} == set(before)
    assert (tmp_path / "report.html").read_bytes() == before["report.html"]
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["quick"] is True


def moving() -> Report:
    """Return a report of clips."""
    given, rows = report(frames=3), []
    for position, each in enumerate(given.rows):
        share = 0.1 * position
        motion = {
            "motion": ends(0.9 - share, 0.8 - share, 0.95 - share), "speed": ends(0.61, 0.5, 0.7),
            "dynamics": Measured(value=1.04), "flicker": Measured(value=0.37),
            "change_distance": ends(12.3, 10.0, 15.0),
        }  # fmt: skip
        rows.append(each.model_copy(update={"measures": each.measures | motion}))
    return given.model_copy(update={"rows": rows})


@pytest.mark.parametrize("width", range(48, 100, 4))
@pytest.mark.parametrize("moves", [False, True])
def test_a_narrow_console_gets_every_number_whole(width: int, moves: bool) -> None:
    given = moving() if moves else report()
    wide, narrow = (printed(given, columns).partition("NFE: ")[0].splitlines() for columns in (200, width))
    assert max(map(len, narrow)) <= width
    for name in NAMES:
        whole, parts = (
            [word for line in lines if line.startswith(f"{name} ") for word in line.split()[1:]]
            for lines in (wide, narrow)
        )
        assert parts == whole


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
