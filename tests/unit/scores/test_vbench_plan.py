"""VBench's plan: every video of its list once, under the name that VBench looks for, with a seed of its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from benchmarks import SUITES, TWICE, write_info

from rmd.common.errors import RMDError
from rmd.scores.vbench import DIMENSIONS, folder_of
from rmd.scores.vbench_plan import plan_vbench
from rmd.scores.weights import sha256


def test_the_whole_list(tmp_path: Path) -> None:
    """946 prompts, of which two are of two files; 5 videos of each, and 25 of the 75 of temporal flickering."""
    info = write_info(tmp_path)
    plan = plan_vbench(info, seed=7)
    assert plan.prompts.count == 946 and plan.prompts.name == "VBench" and plan.prompts.licence == "Apache-2.0"
    assert len(plan.videos) == (946 - 75) * 5 + 75 * 25 == 6230
    assert [video.seed for video in plan.videos] == list(range(7, 6237))
    assert set(plan.folders()) == set(SUITES) and plan.sources == {info.name: sha256(info)}
    counts = Counter(video.folder for video in plan.videos)
    assert counts["temporal_flickering"] == 75 * 25 and counts["scene"] == 86 * 5
    names = [video.path.partition("/")[2] for video in plan.videos if video.prompt == TWICE]
    assert names == [f"{TWICE}-{index}.mp4" for index in range(5)] * 2
    assert plan.videos[24].path == "temporal_flickering/temporal flickering, number 0-24.mp4"


def test_every_dimension_has_a_folder() -> None:
    folders = {each.name: folder_of(each.name) for each in DIMENSIONS}
    assert {name for _, names in SUITES.values() for name in names} == set(folders)
    assert all(folders[name] == suite for suite, (_, names) in SUITES.items() for name in names)


def test_a_dimension_has_the_seeds_of_the_whole_plan(tmp_path: Path) -> None:
    info = write_info(tmp_path, {"temporal_flickering": 1, "color": 2, "subject_consistency": 1})
    whole, part = plan_vbench(info), plan_vbench(info, dimensions=["dynamic_degree", "color"])
    assert part.videos == whole.videos[25:] and part.folders() == ("color", "subject_consistency")
    assert part.prompts == whole.prompts


def test_longer_prompts_keep_the_names(tmp_path: Path) -> None:
    info = write_info(tmp_path, {"color": 2})
    (tmp_path / "longer.txt").write_text("a long prompt\nanother one\n", encoding="utf-8")
    plan = plan_vbench(info, prompts=str(tmp_path / "longer.txt"))
    assert [video.prompt for video in plan.videos] == ["a long prompt"] * 5 + ["another one"] * 5
    assert plan.videos[5].path == "color/color, number 1-0.mp4"
    assert plan.prompts.name == "VBench, longer.txt" and plan.prompts.licence is None
    assert list(plan.sources) == ["VBench_full_info.json", "longer.txt"]
    (tmp_path / "longer.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(RMDError, match=r"longer\.txt has 1 prompts, and .*json has 2: it needs one for each$"):
        plan_vbench(info, prompts=str(tmp_path / "longer.txt"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, r"is no list of prompts: give VBench's VBench_full_info\.json$"),
        ([], r"is no list of prompts"),
        ([{"prompt": "a"}], r"json, prompt 1 has no prompt_en and dimension: give VBench's"),
        ([{"prompt_en": "a", "dimension": []}], r"prompt 1 has no prompt_en and dimension"),
        ([{"prompt_en": "a", "dimension": ["colour"]}], r"unknown dimension of .*prompt 1: 'colour' \(did you mean 'c"),
        ([{"prompt_en": "a", "dimension": ["color", "scene"]}], r"prompt 1 is of dimensions that share no videos, "),
        (
            [{"prompt_en": "a/b", "dimension": ["scene"]}] * 2,
            r"^2 videos have the path 'scene/a/b-0\.mp4': make the plan again$",
        ),
        (
            [{"prompt_en": "../a", "dimension": ["scene"]}],
            r"^'scene/\.\./a-0\.mp4' cannot be the path of a video: it should be that of a file in a folder$",
        ),
        (
            [{"prompt_en": "a" * 250, "dimension": ["scene"]}],
            r"cannot be the path of a video: names have at most 240 bytes$",
        ),
    ],
)
def test_what_is_no_list_of_vbench(content: object, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RMDError, match=sentence):
        plan_vbench(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"^there is no file .*info\.json$"):
        plan_vbench(tmp_path / "info.json")
    (tmp_path / "info.json").write_text("[", encoding="utf-8")
    with pytest.raises(RMDError, match=r"info\.json is not valid JSON: "):
        plan_vbench(tmp_path / "info.json")
    with pytest.raises(RMDError, match=r"^seeds are numbers from 0 to 18446744073709551615, got "):
        plan_vbench(write_info(tmp_path, {"color": 1}), seed=2**64 - 3)
    with pytest.raises(RMDError, match=r"^the plan has no videos of scene: it has those of color$"):
        plan_vbench(write_info(tmp_path, {"color": 1}), dimensions=["scene"])
