"""Samplers: a pipeline's own call gives the same pictures, and arguments and values out of range are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from families import TINY, make_student
from helpers import PROMPTS, tiny_sdxl
from PIL import Image

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.sample.album import read_settings
from rmd.sample.samplers import PipelineSampler


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"), "sdxl", "full")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("clips"), "wan", "lora")


@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_a_pipeline_sampler_equals_the_pipeline_and_refuses_nan(family: str, moving: Path) -> None:
    pipe = tiny_sdxl().pipe if family == "sdxl" else TINY["wan"]().pipe
    pipe.set_progress_bar_config(disable=True)
    sampler = PipelineSampler(pipe, "x", steps=2, height=32, width=32, frames=5 if family == "wan" else None)
    loaded = sampler.sample(PROMPTS[:2], [4, 5])
    arguments: dict[str, Any] = {"num_frames": 5, "max_sequence_length": 32} if family == "wan" else {}
    output = pipe(
        PROMPTS[:2], num_inference_steps=2, height=32, width=32, output_type="pil",
        generator=[torch.Generator().manual_seed(seed) for seed in (4, 5)], **arguments,
    )  # fmt: skip
    for sample, made in zip(loaded, output.frames if family == "wan" else output.images, strict=True):
        frames = zip(sample.media, made, strict=True) if family == "wan" else [(sample.media, made)]
        assert all(np.array_equal(np.asarray(ours), np.asarray(theirs)) for ours, theirs in frames)
    next(pipe.vae.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(RMDError, match=r"^x returned values that are not finite for the prompt 'a small red"):
        sampler.sample(PROMPTS[:2], [4, 5])


def test_arguments_out_of_range_are_refused() -> None:
    pipe = tiny_sdxl().pipe
    for arguments, sentence in (
        ({"steps": 10**9}, "^steps must be between 1 and 10000, got 1000000000$"),
        ({"height": 10**6}, "^height must be between 1 and 16384, got 1000000$"),
        ({"guidance": float("nan")}, "^guidance must be a finite number, got nan$"),
        ({"guidance": -1.0}, "^guidance must be at least 0, got -1$"),
    ):
        with pytest.raises(RMDError, match=sentence):
            PipelineSampler(pipe, "x", **arguments)  # type: ignore[arg-type]
    with pytest.raises(RMDError, match=r"^x refuses its arguments: `height` and `width` have to be divisible by 8"):
        PipelineSampler(pipe, "x", steps=1, width=37).sample(["a"], [0])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "pipeline"
    tiny_sdxl().pipe.save_pretrained(folder)
    return folder


def test_any_pipeline_fills_albums_by_its_own_call(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--model", str(plain), "--out", str(out), "--seed", "3", "--device", "cpu", "--height", "24"]
    assert main(["generate", *PROMPTS[:3], *options, "--steps", "2", "--guidance", "3", "--batch-size", "2"]) == 0
    assert capsys.readouterr().out == f"3 pictures in {out}\n"
    (last,) = out.glob("00002*")
    settings = read_settings(last)
    assert settings is not None
    assert {**settings, "version": ""} == {
        "version": "", "model": str(plain), "num_inference_steps": 2, "guidance_scale": 3.0, "height": 24,
        "prompt": PROMPTS[2], "seed": 5,
    }  # fmt: skip
    pipe = tiny_sdxl().pipe
    expected = pipe(
        PROMPTS[2], height=24, num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(5)
    ).images[0]
    assert np.abs(np.asarray(Image.open(last).convert("RGB")).astype(int) - np.asarray(expected).astype(int)).max() <= 1
    # With other steps it would be another picture.
    assert main(["generate", PROMPTS[0], *options, "--steps", "3", "--guidance", "3"]) == 1
    assert "is another picture" in capsys.readouterr().err


def test_options_that_a_model_does_not_take_are_refused(
    plain: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, more, sentence in (
        (plain, ["--frames", "3"], f"{plain} is a StableDiffusionXLPipeline, which takes no frames: leave it out"),
        (plain, ["--stages"], f"--stages is for students, but {plain} is an ordinary diffusers pipeline: leave it out"),
        (plain, ["--compare-teacher"], "--compare-teacher is for students"),
        (plain, ["--format", "gif"], f"--format is for clips, but {plain} makes single pictures: leave it out"),
        (student, ["--steps", "3"], f"--steps is for ordinary pipelines, but {student} is a student with its own plan"),
        (student, ["--guidance", "3"], "--guidance is for ordinary pipelines"),
        (tmp_path, [], f"{tmp_path} holds neither a student nor a diffusers pipeline: it has no rmd_config.json"),
    ):
        assert main(["generate", "a ball", "--model", str(model), "--out", str(tmp_path / "out"), *more]) == 1
        error = capsys.readouterr().err
        assert error.startswith("rmd: ") and error.count("\n") == 1 and sentence in error
    pipe = tiny_sdxl().pipe
    assert not PipelineSampler(pipe, "x").moving
    with pytest.raises(RMDError, match=r"^x is a DDPMPipeline, which takes no prompt$"):
        PipelineSampler(DDPMPipeline(unet=pipe.unet, scheduler=pipe.scheduler), "x")
