"""The smoke run of the demo as a user starts it: a real process, real weights, and every promised file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from rmd.models.student import load_student
from rmd.worlds.assets import TEACHERS, assets_folder, teacher_home

ROWS = ["teacher", "teacher-4", "cascade-undistilled", "teacher-low", "rmd"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    small = ["--set", "evaluation.n=6", "--set", "train.iterations=2", "--set", "train.batch_size=2"]
    command = [sys.executable, "-m", "rmd", "demo", "--quick", "--out", str(folder), *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_report_has_what_it_promises(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = run
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in report["rows"]] == ROWS
    promised = {
        "attributes", "kernel_distance", "kernel_distance_to_teacher", "frechet_distance", "high_frequency",
        "diversity",
    }  # fmt: skip
    assert all({"name", "nfe", "seconds_per_image", "speedup"} <= row.keys() for row in report["rows"])
    assert all(promised == row["measures"].keys() for row in report["rows"])
    assert {"rows", "seconds", "peak_memory_gb", "config", "versions"} <= report.keys()
    assert [row["nfe"] for row in report["rows"]] == [50, 8, 8, 50, 4]
    assert report["quick"] is True
    assert "Smoke run" in done.stdout
    assert "smoke run" in (folder / "report.html").read_text(encoding="utf-8").lower()


def test_student_is_an_ordinary_pipeline_with_its_plan(
    run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = run
    assert type(DiffusionPipeline.from_pretrained(folder / "student")).__name__ == "StableDiffusionXLPipeline"
    assert [step.stage for step in load_student(folder / "student").plan.steps] == [1, 1, 2, 2]


def test_nothing_but_progress_goes_to_standard_error(
    run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, done = run
    assert all(" s left" in line for line in done.stderr.splitlines()), done.stderr


def test_packaged_weights_stay_small() -> None:
    home, others = assets_folder(), {teacher_home(name).name for name in TEACHERS if name != "scenes"}
    sizes = [(path.relative_to(home), path.stat().st_size) for path in home.rglob("*") if path.is_file()]
    assert sum(size for path, size in sizes if path.parts[0] not in others) < 15e6  # what the demo needs
    weights = [size for path, size in sizes if path.suffix == ".safetensors" and not path.stem.endswith("references")]
    assert sum(weights) < 40e6
