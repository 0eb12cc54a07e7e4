"""Reports with chosen numbers, and a reader of their pages."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from rmd.common.pictures import png
from rmd.core.noise import FlowSchedule
from rmd.core.plan import build_plan
from rmd.evaluation.rows import Check, Measured, Report, Row
from rmd.report import print_table, write_report

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
        versions={"torch": "2.13.0", "rmd": "0.2.0"},
        plan=plan.to_dict(),
        prompts=PROMPTS,
        history=[{"iteration": 10, "student_loss": 0.5, "gap": None}, {"iteration": 20, "student_loss": 0.4}],
        n=1024,
        seed=7,
        overhead=0.031,
    )


def grids(count: int = len(PROMPTS)) -> dict[str, Tensor]:
    """Return different pictures for every row and prompt."""
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
    """Return the pixels of a PNG in a data URL."""
    assert address is not None and address.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return image.tobytes()


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


def printed(given: Report, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_table(given, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
