"""The probe of tiny teachers: with a judge, without one, of clips, and of plans that have nothing to probe."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import recipe_of, tiny_wan
from helpers import PROMPTS, make_recipe, tiny_sdxl, write_prompts

from rmd.common.errors import RMDError
from rmd.evaluation.probe import ProbeResult, lower_stages, run_probe
from rmd.models.base import Backbone
from rmd.recipes.schema import Recipe


def probed(backbone: Backbone, recipe: Recipe, samples: int = 4) -> ProbeResult:
    return run_probe(backbone, recipe, samples=samples, steps=3, batch=4, progress=lambda what, done, total: None)


def test_a_probe_without_a_judge_rests_on_spectra(tmp_path: Path) -> None:
    result = probed(tiny_sdxl(), make_recipe(write_prompts(tmp_path)))
    probe, (stage,) = result.probe, result.probe.stages
    assert (probe.judged, stage.size, probe.size, probe.split) == (False, "16x16", "32x32", [2, 2])
    assert len(stage.rings) == 8 and stage.loss is None and stage.readings == [] and len(stage.criteria) == 2
    assert len(stage.taps) == 8 and stage.upsamplers["taps"] <= stage.upsamplers["bilinear"] + 1e-4
    assert probe.sigmas == [stage.sigma] and len(probe.now) == 1
    assert set(result.prompts) == set(PROMPTS)
    assert [pictures.shape[-1] for pictures in result.pictures["16x16"].values()] == [32, 16, 16]


def test_a_probe_in_a_world_is_judged_and_finishes_the_states() -> None:
    result = probed(tiny_sdxl(), make_recipe("scenes"), samples=6)
    (stage,) = result.probe.stages
    assert result.probe.judged and stage.loss is not None and len(stage.criteria) >= 3
    assert len(stage.readings) == 5 and stage.readings[0].distance is None
    assert all("attributes" in reading.measures and "kernel_distance" in reading.measures for reading in stage.readings)
    assert len(result.prompts) == 3 and len(result.pictures["16x16"]) == 4


def test_every_lower_stage_is_probed(tmp_path: Path) -> None:
    recipe = make_recipe(write_prompts(tmp_path), plan={"sides": [8, 16, 32], "thresholds": [-4.0, -1.0]})
    probe = probed(tiny_sdxl(), recipe).probe
    assert [stage.size for stage in probe.stages] == ["8x8", "16x16"] and len(probe.sigmas) == 2
    assert probe.sigmas[0] > probe.sigmas[1]
    assert len(probe.stages[0].taps) == 16


def test_clips_are_compared_frame_by_frame(tmp_path: Path) -> None:
    recipe = recipe_of("wan", tmp_path, "full", data={"prompts": str(write_prompts(tmp_path))})
    result = probed(tiny_wan(), recipe)
    (stage,) = result.probe.stages
    assert stage.taps == () and stage.upsamplers == {} and all(ring.recoded is None for ring in stage.rings)
    assert all(pictures.ndim == 5 for pictures in result.pictures[stage.size].values())


def test_the_same_probe_gives_the_same_numbers(tmp_path: Path) -> None:
    recipe = make_recipe(write_prompts(tmp_path))
    assert probed(tiny_sdxl(), recipe).probe == probed(tiny_sdxl(), recipe).probe


def test_a_plan_of_one_resolution_has_nothing_to_probe() -> None:
    recipe = make_recipe("none", plan={"sides": [32], "thresholds": []})
    with pytest.raises(RMDError, match="no resolution below 32x32"):
        lower_stages(recipe.build_plan())


def test_a_student_below_the_resolution_of_its_matching_is_probed_there(tmp_path: Path) -> None:
    recipe = make_recipe(write_prompts(tmp_path), plan={"sides": [16], "thresholds": [], "match_side": [32, 32]})
    probe = probed(tiny_sdxl(), recipe).probe
    assert (probe.size, [stage.size for stage in probe.stages]) == ("32x32", ["16x16"])
    assert probe.sigmas == [] and probe.now == []
