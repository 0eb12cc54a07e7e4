"""Pictures tell how they were made: the model, its steps and its guidance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import make_student
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from studies import picture

from rmd.common.errors import RMDError
from rmd.models.student import read_student
from rmd.scores.making import evaluations, making_of


def made(path: Path, *, seed: int = 0, **settings: str | float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_text("rmd", json.dumps({"version": "0", "prompt": "a", "seed": seed, **settings}))
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def test_pictures_of_a_pipeline_tell_its_evaluations(tmp_path: Path) -> None:
    common = {"model": "sdxl", "num_inference_steps": 25, "guidance_scale": 7.5}
    paths = [made(tmp_path / f"{seed}.png", seed=seed, **common) for seed in range(2)]
    making = making_of("teacher", str(tmp_path), paths)
    assert (making.model, making.nfe, making.seconds) == ("teacher", "25x2", None)
    assert making.settings == common
    assert making_of("teacher", str(tmp_path), paths, nfe="50", seconds=1.5).nfe == "50"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, None),
        ({"model": "x", "num_inference_steps": 4}, None),
        ({"model": "x", "num_inference_steps": 4, "guidance_scale": 1.0}, "4"),
        ({"model": "x", "num_inference_steps": 4, "guidance_scale": 0.0}, "4"),
        ({"model": "gone", "steps": 4}, "4"),
    ],
)
def test_what_settings_say(settings: dict[str, str | int | float | bool], found: str | None) -> None:
    assert evaluations(settings) == found


def test_a_students_evaluations_are_those_of_its_stages(tmp_path: Path) -> None:
    student = make_student(tmp_path, "pixart", "full")
    steps = len(read_student(student).plan.steps)
    assert evaluations({"model": str(student), "steps": steps}) == "2+2"
    assert evaluations({"model": str(student), "steps": steps + 1}) == str(steps + 1)  # it was trained anew since


def test_pictures_of_other_programs_say_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (1, 2, 3))
    assert making_of("theirs", "", [tmp_path / "a.png"]).settings == {}


def test_pictures_that_were_made_in_two_ways_are_refused(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"{steps}.png", model="x", num_inference_steps=steps) for steps in (4, 25)]
    with pytest.raises(
        RMDError, match=r"^pictures of one result are made in one way: .* differ in num_inference_steps;"
    ):
        making_of("x", "", paths)
