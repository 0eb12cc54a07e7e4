"""The packaged weights: where they are, that they fit their recipes, and which command builds a missing one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from research.scenes.build import IMITATORS, TRANSFORMERS, load_imitated, load_vae
from research.scenes.gates import HIDDEN
from research.scenes.kits import KITS, SCENES
from research.scenes.moving.build import CLIP_CURRICULUM, CLIP_JUDGE_ITERATIONS, CLIP_REFERENCES, CLIP_VAE_ITERATIONS
from research.scenes.moving.dataset import make_clips
from research.scenes.record import read_record
from research.scenes.vae import encode
from rmd.common.errors import RMDError
from rmd.core.fit import modes_within, power_spectrum
from rmd.core.plan import Stage
from rmd.evaluation.protocol import SamplerContender, evaluation_prompts
from rmd.models.registry import load_pipeline
from rmd.models.teacher import load_teacher, teacher_source
from rmd.recipes.schema import load_recipe
from rmd.sample.samplers import PipelineSampler
from rmd.train.identity import weights_key
from rmd.worlds import assets
from rmd.worlds.assets import TEACHERS, teacher_folder, teacher_home
from rmd.worlds.moving.judge import FEATURES, load_frame_judge
from rmd.worlds.moving.metrics import measure_clips
from rmd.worlds.references import load_references
from rmd.worlds.registry import world_of_teacher
from rmd.worlds.vistas.dataset import make_vistas

STILL = ("scenes", "scenes-pixart", "scenes-sd3", "vistas")


@pytest.mark.parametrize(
    ("name", "home", "command"),
    [
        ("scenes", ".", "python -m research.scenes train-teacher --out"),
        ("scenes-pixart", "pixart", "python -m research.scenes train-teacher --family pixart --out"),
        ("scenes-sd3", "sd3", "python -m research.scenes train-teacher --family sd3 --out"),
        ("vistas", "vistas", "python -m research.scenes train-teacher --world vistas --out"),
        ("scenes-wan", "wan", "python -m research.scenes train-teacher --world moving-scenes --out"),
    ],
)
def test_the_scenes_teachers(
    name: str, home: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "assets_folder", lambda: tmp_path)
    with pytest.raises(RMDError, match=rf"lacks the teacher {name}: build it .* `{command} {tmp_path / home}`"):
        teacher_folder(name)
    (tmp_path / home / "teacher").mkdir(parents=True)
    (tmp_path / home / "teacher" / "model_index.json").touch()
    assert teacher_source(name) == tmp_path / home / "teacher"


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_every_teacher_has_a_recipe_of_its_name_and_family(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.teacher, recipe.family) == (name, TEACHERS[name])


def test_no_packaged_file_says_where_it_was_made() -> None:
    texts = [path.read_text(encoding="utf-8") for path in assets.assets_folder().rglob("*.json")]
    assert texts and not [text for text in texts if "_name_or_path" in text]


@pytest.mark.parametrize("name", STILL)
def test_a_teacher_of_still_pictures_fits_its_recipe_and_its_record(name: str) -> None:
    home, recipe = teacher_home(name), load_recipe(name)
    kit = KITS[world_of_teacher(name).name]
    backbone = load_teacher(recipe)  # checks family, noise and sides
    built, samples = read_record(home), load_references(home)
    assert built.teacher.iterations == (TRANSFORMERS if backbone.family in IMITATORS else kit.curriculum).iterations
    if backbone.family in IMITATORS:
        assert built.teacher.imitated == weights_key(load_imitated(teacher_folder()).denoiser)
    assert built.references.results["guidance"] == recipe.method.guidance
    assert built.references.results["teacher_right"] > 0.9
    assert len(samples["renders"]) == len(samples["teacher"]) == kit.references.count
    if kit is SCENES:  # whose teachers share their renders
        assert samples.high_frequency == pytest.approx(load_references(teacher_home()).high_frequency)


@pytest.mark.parametrize("name", STILL)
def test_a_teacher_of_still_pictures_samples_by_its_stock_pipeline(name: str) -> None:
    sampler = PipelineSampler(load_pipeline(teacher_folder(name)), name, steps=8, guidance=3.0)
    world = world_of_teacher(name)
    captions = evaluation_prompts(world, 6, seed=0)
    size = Stage(1, world.side, world.side)
    images = SamplerContender(name, name, sampler, []).sample(captions, seed=0, size=size).images
    parts = world.judge(name).assess(images, captions, samples_per_prompt=2).counted["attributes"].parts
    assert sum(parts.values()) / len(parts) > 0.9


def test_the_teacher_of_moving_scenes_fits_its_recipe_its_record_and_its_judge() -> None:
    home, recipe = teacher_home("scenes-wan"), load_recipe("scenes-wan")
    assert load_teacher(recipe).schedule.grid(4) == recipe.noise.schedule().grid(4)
    built, samples = read_record(home), load_references(home, moving=True)
    iterations = [part.iterations for part in (built.vae, built.teacher, built.judge)]
    assert iterations == [CLIP_VAE_ITERATIONS, CLIP_CURRICULUM.iterations, CLIP_JUDGE_ITERATIONS]
    results = built.references.results
    assert results["guidance"] == recipe.method.guidance
    assert results["teacher_motion"] > 0.9 and results["teacher_attributes"] > 0.9
    assert samples["render_changes"].shape == samples["teacher_changes"].shape == (CLIP_REFERENCES.count, FEATURES)
    clips = make_clips(16, seed=5, training=False)
    videos = clips.pixels(torch.arange(16))
    read = measure_clips(videos, load_frame_judge(home).follow(videos), clips.attributes)
    assert read["motion"].value == 1 and read["attributes"].value > 0.98


def test_the_vae_of_vistas_is_faithful_smooth_and_the_same_at_both_resolutions() -> None:
    """A crossing in the middle of the schedule, at an SNR of .32, is to hide what the low resolution lacks."""
    vae, vistas = load_vae(teacher_folder("vistas") / "vae"), make_vistas(16, seed=7, training=False)
    pixels = vistas.pixels(torch.arange(16))
    latents = encode(vae, pixels)
    decoded = vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
    assert float(-10 * ((decoded - pixels) / 2).square().mean().log10()) > 31.5
    power = power_spectrum(latents)
    assert float(power[~modes_within(power, 0.5, 0.5)].max()) * 0.32 < HIDDEN
    small = encode(vae, torch.nn.functional.avg_pool2d(pixels, 2))
    gap = torch.nn.functional.avg_pool2d(latents, 2) - small
    assert float(gap.square().mean() / small.var()) < 0.015
