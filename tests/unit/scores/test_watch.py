"""Published networks as one more mark of a student in training, here with small random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from clip_reference import write_openai
from helpers import make_recipe, tiny_sdxl, write_prompts
from PIL import Image
from torch import nn

from rmd.common.errors import RMDError
from rmd.common.pictures import to_image, to_uint8
from rmd.recipes.schema import Recipe, load_recipe
from rmd.scores.metrics import METRICS, Place
from rmd.scores.watch import FRAMES, check_evaluation, pictures_of, run_watcher, score_grader
from rmd.train.run import build_run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openai(tmp_path_factory.mktemp("weights"))


def recipe_of(folder: Path, **evaluation: object) -> Recipe:
    return make_recipe(write_prompts(folder), evaluation={"every": 1, "samples": 3, **evaluation})


def test_scores_are_those_of_the_same_pictures_by_hand(weights: Path) -> None:
    images, prompts = torch.rand(3, 3, 16, 16) * 2 - 1, ["a", "a cat", "dogs"]
    marks = score_grader([METRICS["clip"]], Place(weights), device=torch.device("cpu"))(images, prompts)
    scorer = METRICS["clip"].load(Place(weights))
    values = scorer([to_image(image) for image in to_uint8(images)], prompts)
    assert marks.samples["scores/clip"] == pytest.approx(values.tolist(), abs=1e-5)
    assert marks.recorded["scores/clip"] == pytest.approx(float(values.mean()), abs=1e-5)


def test_of_clips_some_frames_are_scored(weights: Path) -> None:
    clips = torch.rand(2, 3, 9, 16, 16) * 2 - 1
    shown, each = pictures_of(clips)
    assert each == FRAMES and len(shown) == 2 * FRAMES
    assert shown[FRAMES].tobytes() == to_image(to_uint8(clips[1, :, 0])).tobytes()
    assert shown[-1].tobytes() == to_image(to_uint8(clips[1, :, -1])).tobytes()
    grade = score_grader([METRICS["clip"]], Place(weights), device=torch.device("cpu"))
    still = clips[:, :, :1].expand(-1, -1, 9, -1, -1)
    assert grade(still, ["a", "b"]).samples["scores/clip"] == pytest.approx(
        grade(clips[:, :, 0], ["a", "b"]).samples["scores/clip"], abs=1e-4
    )
    assert isinstance(pictures_of(clips[:, :, :2])[0][0], Image.Image) and pictures_of(clips[:, :, :2])[1] == 2


def test_a_run_is_marked_by_the_metrics_of_its_recipe(weights: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, metrics=["clip", "clip"], weights=str(weights))
    run = build_run(recipe, tiny_sdxl(), folder=tmp_path / "run")
    watch = run_watcher(run)
    marks = watch(run.backbone.denoiser)
    assert marks.deciding == "scores/clip" and len(marks.samples["scores/clip"]) == 3
    assert watch(run.backbone.denoiser) == marks
    with torch.no_grad():
        other = nn.Module.requires_grad_(run.backbone.denoiser, False)
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert watch(other).samples != marks.samples and watch(other).sampled == marks.sampled
    file = tmp_path / "others.txt"
    file.write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
    given = recipe_of(tmp_path, metrics=["clip"], weights=str(weights), prompts=str(file))
    elsewhere = run_watcher(build_run(given, tiny_sdxl(), folder=tmp_path / "run"))
    assert elsewhere(run.backbone.denoiser).sampled != marks.sampled


def test_the_judge_is_one_metric_among_the_others(weights: Path, tmp_path: Path) -> None:
    settings = ["evaluation.every=1", "evaluation.samples=3", "evaluation.metrics=[clip, judge]"]
    run = build_run(load_recipe("scenes", [*settings, f"evaluation.weights={weights}"]), folder=tmp_path / "run")
    marks = run_watcher(run)(run.backbone.denoiser)
    assert list(marks.samples) == ["scores/clip", "judge/all_right"] and marks.deciding == "scores/clip"
    assert "judge/kernel_distance" in marks.recorded


def test_what_a_recipe_cannot_ask_for(tmp_path: Path) -> None:
    check_evaluation(make_recipe(write_prompts(tmp_path)))  # no evaluation during training
    with pytest.raises(
        RMDError, match=r"^the judge cannot mark samples of .*: set evaluation\.metrics to some of hps,"
    ):
        check_evaluation(recipe_of(tmp_path))
    with pytest.raises(RMDError, match=r"^unknown metric 'clpi' \(did you mean 'clip'\?\): use "):
        check_evaluation(recipe_of(tmp_path, metrics=["clpi"]))
    with pytest.raises(RMDError, match=r"^evaluation\.metrics: diversity needs several pictures of a prompt, and one"):
        check_evaluation(recipe_of(tmp_path, metrics=["diversity"]))
    (tmp_path / "two.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(RMDError, match=r"^evaluation\.prompts .*two\.txt has too few prompts: at least 3 are needed$"):
        check_evaluation(recipe_of(tmp_path, metrics=["clip"], prompts=str(tmp_path / "two.txt")))
    run = build_run(recipe_of(tmp_path, metrics=["clip"], weights=str(tmp_path)), tiny_sdxl(), folder=tmp_path / "run")
    with pytest.raises(RMDError, match=r"config\.json is missing: download config\.json of openai/clip"):
        run_watcher(run)
