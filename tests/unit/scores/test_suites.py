"""Groups of prompts: the averages of published tables, HPDv2's layout, and intervals of groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from studies import picture

from rmd.common.errors import RMDError
from rmd.scores.result import Making, PromptSet, Protocol, Result, Table, summarise
from rmd.scores.suites import GENEVAL, STYLES, average_of, by_group, by_style, group_scores, has_styles, read_suite

PAPER = {
    "SDXL": (27.73, 31.16, 28.93, 28.73, 29.14),
    "SDXL-Turbo": (31.20, 29.72, 29.56, 27.36, 29.46),
    "SDXL-Lightning": (32.46, 31.07, 31.23, 28.57, 30.83),
    "SDXL, DMD2": (32.75, 31.79, 31.79, 28.87, 31.30),
    "SDXL, TDM": (33.64, 32.37, 32.18, 29.51, 31.93),
    "SDXL, RMD": (33.71, 32.14, 31.94, 30.16, 31.99),
    "PixArt": (32.22, 30.71, 30.45, 29.58, 30.74),
    "PixArt, YOSO": (31.40, 31.18, 31.26, 28.15, 30.60),
    "PixArt, DMD2": (32.56, 31.57, 31.57, 29.76, 31.36),
    "PixArt, TDM": (33.07, 32.25, 32.23, 30.64, 32.05),
    "PixArt, RMD": (33.24, 32.42, 32.55, 30.71, 32.23),
    "SD3.5": (31.86, 30.99, 30.75, 27.58, 30.29),
    "SD3.5-Turbo": (30.07, 28.25, 28.82, 25.78, 28.23),
    "SD3.5, DMD2": (31.38, 30.47, 31.20, 28.65, 30.42),
    "SD3.5, TDM": (31.24, 30.20, 30.94, 27.74, 30.03),
    "SD3.5, RMD": (31.62, 30.50, 31.22, 28.89, 30.56),
}
"""HPSv2.1 by style, and the average, of the rows of the paper's Tab. 1."""
GENEVAL_ROWS = ((0.99, 0.81, 0.60, 0.81, 0.21, 0.48, 0.65), (0.98, 0.78, 0.64, 0.83, 0.18, 0.53, 0.66))
"""GenEval by task, and overall, of DP-DMD's student and of SD3.5 medium, as published with DP-DMD."""


def test_averages_of_the_papers_first_table() -> None:
    """Every row is the mean of its four styles, but for one: YOSO prints 30.60, and its parts give 30.50."""
    wrong = {}
    for row, values in PAPER.items():
        average = average_of(dict(zip(STYLES, values[:4], strict=True)), STYLES)
        if abs(average - values[4]) > 0.0051:
            wrong[row] = average
    assert wrong == {"PixArt, YOSO": pytest.approx(30.4975)}


@pytest.mark.parametrize("row", GENEVAL_ROWS)
def test_averages_of_geneval(row: tuple[float, ...]) -> None:
    assert average_of(dict(zip(GENEVAL, row[:6], strict=True)), GENEVAL) == pytest.approx(row[6], abs=0.0051)


def test_an_average_needs_every_group_and_no_other() -> None:
    scores = dict.fromkeys(STYLES, 1.0)
    with pytest.raises(RMDError, match=r"^an average needs the scores of anime, .*, photo, but photo has no score$"):
        average_of({name: value for name, value in scores.items() if name != "photo"}, STYLES)
    with pytest.raises(RMDError, match=r", but cartoon is not one of them$"):
        average_of({**scores, "cartoon": 2.0}, STYLES)


def write_prompts(folder: Path, counts: Mapping[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for style, count in counts.items():
        prompts = [f" {style} {number}" for number in range(count)]
        (folder / f"{style}.json").write_text(json.dumps(prompts), encoding="utf-8")


def test_prompts_in_the_layout_of_hpdv2(tmp_path: Path) -> None:
    write_prompts(tmp_path, {"paintings": 1, "photo": 2, "anime": 3, "concept-art": 1, "drawbench": 5})
    suite = read_suite(str(tmp_path))
    assert list(suite.groups.items()) == [("anime", 3), ("concept-art", 1), ("paintings", 1), ("photo", 2)]
    assert suite.prompts[2:5] == ("anime 2", "concept-art 0", "paintings 0")
    for content, sentence in (
        (["a", " "], r"photo\.json, entry 2: the prompt is empty; correct it$"),
        (["a", 3], r"photo\.json, entry 2 is neither a prompt nor a record; correct it$"),
        ([], r"photo\.json has no prompts: download it again$"),
        ({"a": 1}, r"photo\.json does not hold a list"),
    ):
        (tmp_path / "photo.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(RMDError, match=sentence):
            read_suite(str(tmp_path))
    (tmp_path / "photo.json").unlink()
    with pytest.raises(RMDError, match=r"^there is no prompt file .*photo\.json: "):
        read_suite(str(tmp_path))


def test_pictures_in_the_layout_of_hpdv2(tmp_path: Path) -> None:
    write_prompts(tmp_path / "p", {"anime": 3, "concept-art": 1, "paintings": 1, "photo": 2})
    suite, place = read_suite(str(tmp_path / "p")), tmp_path / "model"
    assert not has_styles(str(place))
    names = ["anime/00000.jpg", "anime/00002.jpg", "concept-art/00000.jpg", "paintings/00000.jpg", "photo/00001.jpg"]
    for name in names:
        picture(place / name, (1, 2, 3))
    assert has_styles(str(place))
    found = by_style(str(place), suite)
    assert [None if path is None else path.relative_to(place).as_posix() for path in found] == [
        names[0], None, names[1], *names[2:4], None, names[4],
    ]  # fmt: skip
    picture(place / "photo" / "00002.jpg", (1, 2, 3))
    with pytest.raises(
        RMDError, match=r"00002\.jpg is not called like a prompt of photo: the names are numbers up to 1"
    ):
        by_style(str(place), suite)
    (place / "photo" / "00002.jpg").rename(place / "photo" / "cat.jpg")
    with pytest.raises(RMDError, match=r"cat\.jpg is not called like a prompt of photo"):
        by_style(str(place), suite)
    (place / "photo" / "cat.jpg").rename(place / "photo" / "1.png")
    with pytest.raises(RMDError, match=r"00001\.jpg and .*1\.png belong to the same prompt: remove one of them$"):
        by_style(str(place), suite)


def table_of(values: list[float], each: int = 1) -> Table:
    prompts = np.repeat(np.arange(len(values) // each), each)
    return Table(prompts, np.arange(len(values)), [f"{i}.png" for i in range(len(values))], {"m": np.asarray(values)})


def test_groups_count_alike_however_many_pictures_they_have() -> None:
    table = table_of([1.0, 2.0, 3.0, 10.0, np.nan, 6.0])
    found = group_scores(table, "m", {"a": 3, "b": 3}, each=1)
    assert (found.groups["a"].mean, found.groups["b"].mean, found.average.mean) == (2.0, 8.0, 5.0)
    assert (found.groups["a"].count, found.groups["b"].count, found.groups["b"].missing) == (3, 2, 1)
    assert (found.average.count, found.average.missing) == (5, 1)
    a = summarise(table_of([1.0, 2.0, 3.0]), "m", expected=3)
    assert found.groups["a"] == a
    with pytest.raises(RMDError, match=r"^no picture of b has a value of m: generate some$"):
        group_scores(table_of([1.0, np.nan]), "m", {"a": 1, "b": 1}, each=1)
    with pytest.raises(RMDError, match=r"^the prompts of this result have no groups: "):
        group_scores(table, "m", {}, each=1)


def test_the_average_is_surer_than_the_mean_of_everything() -> None:
    """Prompts are drawn within their groups, so a difference between groups adds nothing to the interval."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(10 * group, 1, 100) for group in range(4)])
    groups = {str(group): 100 for group in range(4)}
    table = table_of([float(value) for value in values])
    found, whole = group_scores(table, "m", groups, each=1), summarise(table, "m", expected=400)
    assert found.average.mean == pytest.approx(whole.mean)
    width = found.average.high - found.average.low
    assert width == pytest.approx(2 * 1.96 / 20, rel=0.15) and whole.high - whole.low > 8 * width


def test_the_groups_of_a_result(tmp_path: Path) -> None:
    table = table_of([1.0, 3.0, 5.0, 7.0], each=2)
    protocol = Protocol(
        prompts=PromptSet(name="p", sha256="ab", count=2, groups={"a": 1, "b": 1}), seed=0, each=2, width=8, height=8,
        image_format="png", metrics={}, dtype="float32",
    )  # fmt: skip
    score = summarise(table, "m", expected=4)
    result = Result(making=Making(model="m"), protocol=protocol, scores={"m": score}, versions={})
    found = by_group(result, table, "m")
    assert {name: each.mean for name, each in found.groups.items()} == {"a": 2.0, "b": 6.0}
    assert found.average.mean == 4.0 and found.average.missing == 0
