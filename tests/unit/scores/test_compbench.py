"""T2V-CompBench: the plan of its videos, and the exact means of its categories, from which nothing is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import result_csv, write_prompts

from rmd.common.errors import RMDError
from rmd.scores.compbench import CATEGORIES, NAMES, CategoryScore, plan_compbench, read_results, totals

ENDINGS = [ending for category in CATEGORIES for ending in category.results]


@pytest.mark.parametrize(("each", "version"), [(100, 1), (200, 2)])
def test_the_plan_of_both_versions(each: int, version: int, tmp_path: Path) -> None:
    plan = plan_compbench(write_prompts(tmp_path / "prompts", each), seed=3)
    assert len(plan.videos) == plan.prompts.count == 7 * each
    assert plan.prompts.name == f"T2V-CompBench, version {version}" and plan.folders() == NAMES
    assert plan.videos[0].path == "consistent_attr/0001.mp4" and plan.videos[-1].path == f"{NAMES[-1]}/{each:04d}.mp4"
    assert [video.seed for video in plan.videos] == list(range(3, 3 + 7 * each))
    assert plan.videos[each].prompt == "dynamic_attr, number 0" and len(plan.sources) == 7
    part = plan_compbench(tmp_path / "prompts", seed=3, categories=["interaction"])
    assert part.videos == tuple(video for video in plan.videos if video.folder == "interaction")


def test_a_prompt_may_occur_twice(tmp_path: Path) -> None:
    """A folder in the layout of the first version gives the plan; the lines number the videos."""
    prompts = write_prompts(tmp_path / "prompts")
    lines = ["the same"] * 2 + [f"line {number}" for number in range(98)]
    (prompts / "4_motion_binding.txt").write_text("\n".join(lines), encoding="utf-8")
    videos = plan_compbench(prompts, categories=["motion_binding"]).videos
    assert len(videos) == 100 and videos[0].prompt == videos[1].prompt and videos[1].path == "motion_binding/0002.mp4"


def test_what_is_no_list_of_prompts(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"^there is no .*1_consistent_attr\.txt: give the folder `prompts` of T2V-Comp"):
        plan_compbench(tmp_path)
    prompts = write_prompts(tmp_path / "prompts")
    (prompts / "7_numeracy.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(
        RMDError, match=r"^every category has 100 prompts in version 1 and 200 in version 2, but .*has c"
    ):
        plan_compbench(prompts)


def write(folder: Path, ending: str, scores: list[object], mean: float | None = None, head: str = "Score") -> Path:
    path = folder / f"mymodel{ending}"
    path.write_text(result_csv(scores, mean, f"name,prompt,answer,{head}"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("ending", "scores", "mean"),
    [
        ("_consistent_attr_score.csv", [5, 4.5, 1, 2.8], (1 + 0.875 + 0 + 0.45) / 4),
        ("_dynamic_attr_score.csv", [0.5, 0, 0.32, 1], 1.82 / 4),
        ("_action_binding_score.csv", [0, 5, 3, 1], 9 / 20),
        ("_object_interactions_score.csv", [1, 5, 3, 2], (0 + 1 + 0.5 + 0.25) / 4),
        ("_score.csv", [-1, 0, 0.5, 1], (0 + 0.2 + 0.6 + 1) / 4),
        ("_numeracy_video.csv", [0.25, 1, 0, 0.75], 0.5),
    ],
)
def test_the_formula_of_every_category(ending: str, scores: list[float], mean: float, tmp_path: Path) -> None:
    head = "Score_1" if "video" in ending else "Score"
    path = write(tmp_path, ending, [*scores] * 25, mean, head)
    (score,) = read_results([path]).values()
    assert score.mean == pytest.approx(mean, abs=1e-12) and (score.count, score.unread) == (100, 0)


def test_relations_in_the_plane_and_in_depth_are_one_category(tmp_path: Path) -> None:
    plane = write(tmp_path, "_2dvideo.csv", [0.5] * 60, head="Score_1")
    depth = write(tmp_path, "_3dvideo.csv", [1.0] * 40, 0.7, "Score_1")
    for order in ([plane, depth], [depth, plane]):
        assert read_results(order) == {"spatial_relationships": CategoryScore(mean=0.7, count=100)}
    with pytest.raises(RMDError, match=r"^spatial_relationships needs a file \*_2dvideo\.csv beside .*_3dvideo\.csv$"):
        read_results([depth])


def test_replies_that_could_not_be_read_are_counted(tmp_path: Path) -> None:
    """The script leaves them out of its mean, too, or fails because of them and writes none."""
    path = write(tmp_path, "_action_binding_score.csv", ["bad reply", *[5] * 50, *[0] * 49], 50 / 99)
    assert read_results([path]) == {"action_binding": CategoryScore(mean=50 / 99, count=99, unread=1)}
    write(tmp_path, "_action_binding_score.csv", ["bad reply", *[5] * 50, *[0] * 49])
    assert read_results([path])["action_binding"].unread == 1


@pytest.mark.parametrize(
    ("scores", "mean", "sentence"),
    [
        (
            [5] * 57,
            None,
            r"score\.csv is of 57 videos, and a category has 100 in version 1 and 200 in version 2: let it",
        ),
        (
            [5] * 100,
            0.9,
            r"^the last line of .*score\.csv says 0\.9, but its rows have a mean of 1: run its script again$",
        ),
        ([6] * 100, None, r"has a score out of its range: give the file that T2V-CompBench's script wrote$"),
        (["bad reply"] * 100, None, r"has a score out of its range"),
    ],
)
def test_files_that_are_not_whole(scores: list[object], mean: float | None, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=sentence):
        read_results([write(tmp_path, "_action_binding_score.csv", scores, mean)])


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x_action_binding_score.csv"
    with pytest.raises(RMDError, match=r"^there is no file "):
        read_results([path])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RMDError, match=r"is not a CSV file: "):
        read_results([path])
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(
        RMDError, match=r"has 'b' where the head of its last column should be Score: give another file$"
    ):
        read_results([path])
    with pytest.raises(
        RMDError, match=r"x\.json is no result of T2V-CompBench, whose files are called \*_consistent_at"
    ):
        read_results([tmp_path / "x.json"])
    one, two = (write(folder, "_dynamic_attr_score.csv", [1] * 100) for folder in (tmp_path, tmp_path))
    with pytest.raises(RMDError, match=r" has dynamic_attr, too: give one file for each category$"):
        read_results([one, two])


def test_the_average_is_of_all_categories() -> None:
    scores = {name: CategoryScore(mean=number / 10, count=99, unread=1) for number, name in enumerate(NAMES)}
    result = totals(dict(reversed(scores.items())))
    assert result.average == pytest.approx(0.3) and result.edition == 1 and list(result.categories) == list(NAMES)
    del scores["interaction"], scores["dynamic_attr"]
    with pytest.raises(
        RMDError,
        match=r"^T2V-CompBench's average needs all 7 categories, and 2 are missing: dynamic_attr, interaction$",
    ):
        totals(scores)
    scores = {name: CategoryScore(mean=0.5, count=100) for name in NAMES}
    scores["interaction"] = CategoryScore(mean=0.5, count=200)
    with pytest.raises(RMDError, match=r"^the categories are of two versions of T2V-CompBench: "):
        totals(scores)


def test_no_two_files_have_one_name() -> None:
    assert len(set(ENDINGS)) == 8 and len(CATEGORIES) == 7
