"""The packaged recipes against the paper."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.core.times import flow_sigma
from rmd.recipes.layers import PACKAGED, recipe_names
from rmd.recipes.schema import load_recipe, to_yaml

NAMES = [
    "flux", "pixart", "pixart-lora", "pixart-paper", "pixart-sigma", "pixart-sigma-lora", "scenes", "scenes-authors",
    "scenes-paper", "scenes-pixart", "scenes-pixart-paper",
    "scenes-sd3", "scenes-sd3-paper", "scenes-wan", "scenes-wan-paper",
    "sd15", "sd35", "sd35-full", "sd35-paper", "sdxl", "sdxl-1+1+2", "sdxl-1+2+1", "sdxl-2+1+1",
    "sdxl-full", "sdxl-paper", "vistas", "vistas-paper",
    "wan21-1.3b-3+3", "wan21-1.3b-authors", "wan21-1.3b-full", "wan21-14b",
    "wan21-14b-2+2+2", "wan21-14b-3+3", "wan21-14b-4+2", "wan21-14b-authors", "wan21-14b-full",
    "wan21-14b-paper",
]  # fmt: skip


def split(name: str, *overrides: str) -> list[int]:
    plan = load_recipe(name, overrides).build_plan()
    counts = Counter(step.stage for step in plan.steps)
    return [counts[stage.index] for stage in plan.stages]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_recipe_is_listed_and_base_is_not() -> None:
    assert recipe_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_recipe_is_short_and_complete(name: str, tmp_path: Path) -> None:
    text = (PACKAGED / f"{name}.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 25
    assert text.startswith("# ")
    recipe = load_recipe(name)
    assert recipe.name == name
    recipe.build_plan()
    assert load_recipe(write(tmp_path, "again.yaml", to_yaml(recipe))) == recipe


def test_base_is_short_and_lacks_what_a_backbone_decides() -> None:
    assert len((PACKAGED / "base.yaml").read_text(encoding="utf-8").splitlines()) <= 25
    with pytest.raises(RMDError, match=r"^base\.yaml: family is missing \(and \d+ more\)$"):
        load_recipe("base")


@pytest.mark.parametrize(
    ("name", "train_beta", "beta"),
    [
        ("scenes-paper", 0.2, 1.0),
        ("scenes-pixart-paper", 0.2, 1.0),
        ("scenes-sd3-paper", 0.2, 1.0),
        ("vistas-paper", 0.2, 1.0),
        ("scenes-wan-paper", 0.5, 0.9),
    ],
)
def test_the_papers_variants_of_the_packaged_teachers(name: str, train_beta: float, beta: float) -> None:
    recipe, usual = load_recipe(name), load_recipe(name.removesuffix("-paper"))
    assert (recipe.teacher, recipe.optim, recipe.method.guidance) == (usual.teacher, usual.optim, usual.method.guidance)
    assert recipe.method.matching == "teacher" and recipe.method.warmup_steps == 30
    assert recipe.plan.map == "raise" and recipe.crossing.rule == "plain" != usual.crossing.rule
    assert (recipe.crossing.train_beta, recipe.crossing.beta) == (train_beta, beta)
    assert split(name) == [2, 2]
    times = tuple(step.teacher_time for step in recipe.build_plan().steps)
    assert times == recipe.schedule().grid(4)  # uniform in the schedule's own time


# Sec. 4.1 and App. B: guidance of the teacher, beta when training and sampling, warm-up, batch.
@pytest.mark.parametrize(
    ("name", "guidance", "train_beta", "beta", "warmup", "batch"),
    [
        ("sdxl-paper", 7.5, 0.2, 1.0, 50, 32),
        ("pixart-paper", 3.5, 0.2, 1.0, 50, 32),
        ("sd35-paper", 4.5, 0.2, 1.0, 50, 32),
        ("wan21-14b-paper", 5.0, 0.5, 0.9, 20, 4),
    ],
)
def test_settings_of_the_paper(
    name: str, guidance: float, train_beta: float, beta: float, warmup: int, batch: int
) -> None:
    recipe = load_recipe(name)
    assert recipe.method.guidance == guidance
    plan = recipe.build_plan()
    assert (plan.training_crossing.beta, plan.crossing.beta) == (train_beta, beta)
    assert plan.training_crossing.rule == plan.crossing.rule == "plain"
    assert (recipe.method.warmup_steps, recipe.train.batch_size) == (warmup, batch)
    assert (recipe.method.metric, recipe.optim.clip_norm) == ("pseudo_huber", 1.0)


@pytest.mark.parametrize(
    ("lora", "full"),
    [
        ("sdxl", "sdxl-full"), ("pixart-lora", "pixart"), ("pixart-sigma-lora", "pixart-sigma"), ("sd35", "sd35-full"),
        ("wan21-14b", "wan21-14b-full"),
    ],
)  # fmt: skip
def test_recipes_come_in_both_forms_that_differ_in_roles_and_rates_alone(lora: str, full: str) -> None:
    both = load_recipe(lora), load_recipe(full)
    assert [recipe.roles.mode for recipe in both] == ["lora", "full"]
    assert (both[0].roles.rank, both[0].roles.alpha) == (64, 64.0)
    assert both[0].optim.student_lr > both[1].optim.student_lr
    differ = {"name": True, "roles": True, "optim": {"student_lr", "fake_lr"}}
    assert both[0].model_dump(exclude=differ) == both[1].model_dump(exclude=differ)


def test_pixart_sigma_has_the_schedule_and_plan_of_pixart_alpha() -> None:
    alpha, sigma = load_recipe("pixart"), load_recipe("pixart-sigma")
    assert sigma.model_dump(exclude={"name", "teacher"}) == alpha.model_dump(exclude={"name", "teacher"})
    assert "Sigma" in sigma.teacher


# Tab. 6. Its numbers are printed to the nearest unit or the one below.
@pytest.mark.parametrize(
    ("name", "model_times", "sides"),
    [
        ("sdxl-paper", [1000, 857, 500, 250], [(512, 512)] * 2 + [(1024, 1024)] * 2),
        ("pixart-paper", [1000, 857, 500, 250], [(512, 512)] * 2 + [(1024, 1024)] * 2),
        ("sd35-paper", [1000, 947, 750, 500], [(512, 512)] * 2 + [(1024, 1024)] * 2),
        ("wan21-14b-paper", [1000, 974, 937, 834, 716, 505], [(480, 832)] * 3 + [(720, 1280)] * 3),
    ],
)
def test_times_and_sides_of_the_paper(name: str, model_times: list[float], sides: list[tuple[int, int]]) -> None:
    plan = load_recipe(name).build_plan()
    assert [step.model_time for step in plan.steps] == pytest.approx(model_times, abs=1.0)
    stages = [plan.stage_of(step) for step in plan.steps]
    assert [(stage.height, stage.width) for stage in stages] == sides


@pytest.mark.parametrize("name", ["sdxl", "pixart", "sd35", "wan21-14b"])
def test_recipes_differ_from_the_papers_in_times_and_noise_alone(name: str) -> None:
    ours, papers = load_recipe(name), load_recipe(f"{name}-paper")
    differ = {"name": True, "plan": {"steps", "split", "cross_at", "thresholds", "map"}, "crossing": True}
    assert ours.model_dump(exclude=differ) == papers.model_dump(exclude=differ)
    assert ours.build_plan().warnings() == []
    counts = [[step.stage for step in recipe.build_plan().steps] for recipe in (ours, papers)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("-paper")])
def test_recipes_but_the_papers_warn_of_nothing(name: str) -> None:
    assert load_recipe(name).build_plan().warnings() == []


@pytest.mark.parametrize("name", ["sdxl", "pixart", "sd35"])
def test_images_cross_at_a_sigma_of_four_fifths(name: str) -> None:
    plan = load_recipe(name).build_plan()
    assert [step.stage for step in plan.steps] == [1, 1, 2, 2]
    assert flow_sigma(plan.steps[2].logsnr) == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize("split_of_six", ["3+3", "4+2", "2+2+2"])
def test_wans_recipes_are_split_as_they_are_called(split_of_six: str) -> None:
    name = f"wan21-14b-{split_of_six}"
    assert "+".join(map(str, split(name))) == split_of_six
    recipe, paper = load_recipe(name), load_recipe("wan21-14b")
    assert recipe.model_dump(exclude={"name", "plan"}) == paper.model_dump(exclude={"name", "plan"})
    assert recipe.build_plan().frames == 81 and recipe.train.gradient_checkpointing


def test_the_small_wan_has_the_plan_of_the_large_one() -> None:
    small, large = load_recipe("wan21-1.3b-3+3"), load_recipe("wan21-14b")
    assert small.model_dump(exclude={"name", "teacher"}) == large.model_dump(exclude={"name", "teacher"})
    assert "1.3B" in small.teacher


@pytest.mark.parametrize("threshold, expected", [(-6.0, [1, 3]), (-2.5, [2, 2]), (0.0, [3, 1])])
def test_splits_of_table_4(threshold: float, expected: list[int]) -> None:
    assert split("pixart-paper", f"plan.thresholds=[{threshold}]") == expected


@pytest.mark.parametrize("expected", [[1, 1, 2], [1, 2, 1], [2, 1, 1]])
def test_the_names_of_the_three_stage_recipes_are_their_splits(expected: list[int]) -> None:
    assert split("sdxl-" + "+".join(map(str, expected))) == expected


def test_why_wan_has_a_threshold_of_its_own() -> None:
    assert split("wan21-14b") == [3, 3]
    assert split("wan21-14b", "plan.thresholds=[-2.5]") == [4, 2]


def test_the_moving_scenes_have_wans_settings() -> None:
    ours, wan = load_recipe("scenes-wan"), load_recipe("wan21-14b")
    assert (ours.noise, ours.plan.thresholds) == (wan.noise, wan.plan.thresholds) and split("scenes-wan") == [2, 2]
    assert ours.method.guidance == wan.method.guidance


def test_scenes_run_on_the_packaged_teacher() -> None:
    recipe = load_recipe("scenes")
    assert (recipe.teacher, recipe.data.prompts) == ("scenes", "scenes")
    assert split("scenes") == [2, 2]
    assert recipe.build_plan().warnings() == []
