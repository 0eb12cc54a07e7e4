"""The check of a folder against a plan: what is missing, another video or superfluous, and links to what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import write_info, write_videos

from rmd.common.errors import RMDError
from rmd.sample.plans import VideoPlan
from rmd.scores.planned import check_videos, contents_hashes, link_videos
from rmd.scores.vbench_plan import plan_vbench


@pytest.fixture
def plan(tmp_path: Path) -> VideoPlan:
    return plan_vbench(write_info(tmp_path, {"color": 1, "scene": 1}))


def test_a_complete_folder(plan: VideoPlan, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(plan, folder, settings=True)
    (folder / ".rmd.lock").touch()
    (folder / "color" / ".hidden").touch()
    found = check_videos(plan, folder)
    assert found.exact and found.total == 10
    found.require(folder)


def test_what_is_missing_and_superfluous(plan: VideoPlan, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(plan, folder)
    (folder / "color" / "color, number 0-3.mp4").unlink()
    (folder / "scene" / "scene, number 0-0.mp4").rename(folder / "scene" / "scene, number 0-9.mp4")
    (folder / "notes.txt").touch()
    found = check_videos(plan, folder)
    assert found.missing == ["color/color, number 0-3.mp4", "scene/scene, number 0-0.mp4"] and not found.different
    assert found.superfluous == ["notes.txt", "scene/scene, number 0-9.mp4"] and not found.exact
    with pytest.raises(RMDError) as caught:
        found.require(folder)
    assert str(caught.value) == (
        f"2 of the plan's 10 videos are missing in {folder}, such as 'color/color, number 0-3.mp4': make them with "
        f"`rmd generate --plan PLAN --out {folder}`"
    )
    with pytest.raises(RMDError, match=r"^there is no folder .*nowhere: name the one that has the plan's videos$"):
        check_videos(plan, tmp_path / "nowhere")


def test_videos_of_another_seed_are_noticed_by_their_settings(plan: VideoPlan, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(plan_vbench(tmp_path / "VBench_full_info.json", seed=100), folder, settings=True)
    (folder / "color" / "color, number 0-0.mp4.json").unlink()
    found = check_videos(plan, folder)
    assert len(found.different) == 9 and not found.missing and not found.superfluous
    with pytest.raises(RMDError, match=r"^9 of the plan's 10 videos are of another prompt or seed in .*: remove them"):
        found.require(folder)


def test_links_to_the_videos_and_nothing_else(plan: VideoPlan, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(plan, folder, settings=True)
    link_videos(plan.below(["color"]), folder, tmp_path / "links")
    links = sorted((tmp_path / "links").rglob("*.*"))
    assert [link.name for link in links] == [f"color, number 0-{index}.mp4" for index in range(5)]
    assert all(link.read_bytes() == b"a video of color, number 0" for link in links)
    with pytest.raises(RMDError, match=r"^cannot write to .*links: "):
        link_videos(plan.below(["color"]), folder, tmp_path / "links")


def test_hashes_are_of_the_contents_by_folder(plan: VideoPlan, tmp_path: Path) -> None:
    folder, seen = tmp_path / "videos", []
    write_videos(plan, folder)
    before = contents_hashes(plan, folder, lambda what, done, total: seen.append((what, done, total)))
    assert before.keys() == {"color", "scene"} and seen[0] == ("reading", 0, 10) and seen[-1] == ("reading", 10, 10)
    assert contents_hashes(plan.below(["color"]), folder) == {"color": before["color"]}
    (folder / plan.videos[0].path).write_bytes(b"another one")
    after = contents_hashes(plan, folder)
    assert after["color"] != before["color"] and after["scene"] == before["scene"]
    (folder / plan.videos[0].path).unlink()
    with pytest.raises(RMDError, match=r"^there is no file .*number 0-0\.mp4$"):
        contents_hashes(plan, folder)
