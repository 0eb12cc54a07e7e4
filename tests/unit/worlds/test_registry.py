"""The registry of worlds: which one belongs to a recipe or teacher, and what every world provides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.evaluation.metrics import METRICS
from rmd.recipes.schema import load_recipe
from rmd.worlds.base import Assessment, Features, Measured, PackagedTeacher
from rmd.worlds.moving.grammar import clip_attributes_of
from rmd.worlds.moving.render import clips_of, render_clips
from rmd.worlds.picture import PictureWorld
from rmd.worlds.registry import WORLDS, all_worlds, packaged_teachers, world_of, world_of_kind, world_of_teacher


def test_a_recipe_belongs_to_the_world_of_its_prompts_or_else_of_its_teacher() -> None:
    assert [world_of(load_recipe(name)).name for name in ("scenes", "scenes-pixart", "scenes-sd3")] == ["scenes"] * 3
    assert world_of(load_recipe("vistas")).name == "vistas"
    assert world_of(load_recipe("scenes-wan")).name == "moving-scenes"
    assert world_of(load_recipe("scenes", ["data.prompts=mine.txt"])).name == "scenes"
    assert world_of(load_recipe("sdxl", ["data.prompts=scenes"])).name == "scenes"
    with pytest.raises(RMDError, match=r"^there is no judge for prompts of 'mine.txt' and the teacher "):
        world_of(load_recipe("sdxl", ["data.prompts=mine.txt"]))


def test_teachers_and_kinds() -> None:
    assert list(packaged_teachers()) == ["scenes", "scenes-pixart", "scenes-sd3", "vistas", "scenes-wan"]
    assert world_of_teacher("scenes-wan") is world_of_kind(moving=True)
    assert world_of_teacher("scenes-sd3") is world_of_kind(moving=False)
    with pytest.raises(RMDError, match=r"^unknown teacher 'scene' \(did you mean 'scenes'\?\)"):
        world_of_teacher("scene")


def test_every_world_provides_what_a_run_asks_for(tmp_path: Path) -> None:
    for world in all_worlds():
        assert WORLDS.get(world.name) is world and world.teachers
        captions = world.captions(20, seed=3, training=True)
        assert captions[:5] == world.captions(5, seed=3, training=True) != world.captions(5, seed=4, training=True)
        assert all(METRICS.get(name).name == name for name in world.metrics)
        sheet = world.draw(2, seed=0, text=captions[0], folder=tmp_path / world.name, size=16)
        assert sheet.is_file() and len(list(sheet.parent.glob("000*"))) == 2
        rows = {row for target in world.demo.targets for row in (target.row, target.over) if row}
        assert rows <= set(world.demo.rows)


def rendered(name: str, captions: list[str]) -> Tensor:
    world = WORLDS.get(name)
    if isinstance(world, PictureWorld):
        drawn = [world.sample(1, seed=index, text=text) for index, text in enumerate(captions)]
        return torch.cat([world.paint(each, world.side) for each in drawn]) * 2 - 1
    return render_clips(clips_of([clip_attributes_of(text) for text in captions], seed=1)) * 2 - 1


@pytest.mark.parametrize("name", ["scenes", "vistas", "moving-scenes"])
def test_a_judge_finds_renders_right_and_every_metric_can_be_computed(name: str) -> None:
    world = WORLDS.get(name)
    captions = [text for text in world.captions(6, seed=2, training=False) for _ in range(2)]
    assessment = world.judge().assess(rendered(name, captions), captions, samples_per_prompt=2)
    assert assessment.count == 12 and assessment.right.shape == (12,) and assessment.right.float().mean() > 0.9
    values = {each: METRICS.get(each).compute(assessment) for each in world.metrics}
    assert values["attributes"].value > 0.9 and values["high_frequency"].value == pytest.approx(1, abs=0.2)
    low, high = values["kernel_distance"].interval or (1, -1)
    assert low <= 0 <= high
    other = world.captions(6, seed=9, training=False)
    wrong = world.judge().assess(rendered(name, captions[::2]), other, samples_per_prompt=1)
    assert wrong.counted["attributes"].value < 0.5


def test_renders_are_those_that_training_may_show() -> None:
    renders = WORLDS.get("scenes").renders(3, seed=5, size=32)
    assert renders.images.shape == (3, 3, 32, 32) and len(renders.captions) == 3
    pixels = renders.pixels(torch.tensor([2, 0]))
    assert pixels.shape == (2, 3, 32, 32) and -1 <= pixels.min() < pixels.max() <= 1
    with pytest.raises(RMDError, match=r"^moving-scenes renders clips, but single pictures are needed here"):
        WORLDS.get("moving-scenes").renders(3, seed=5, size=32)


def test_measured_values_and_features() -> None:
    assert Measured(value=0.5).interval is None and Measured(value=0.5, low=0.4, high=0.6).interval == (0.4, 0.6)
    samples, renders = torch.randn(4, 3), torch.randn(50, 3)
    features = Features(samples, renders, renders + 1)
    assert torch.allclose(features.scores[1].mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert features.teacher_scores.shape == (50, 3)
    assert Assessment(4, 2, torch.ones(4), {}, features, 1.0).changes is None
    assert PackagedTeacher("a", "sdxl", Path("home")).build == ""
