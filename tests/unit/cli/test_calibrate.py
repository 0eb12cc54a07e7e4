"""`rmd eval calibrate`: our means beside the published ones, and errors in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from studies import picture
from torch import Tensor

from rmd.cli.app import main
from rmd.scores import metrics
from rmd.scores.metrics import ImageMetric
from rmd.scores.result import Preparation
from rmd.scores.suites import STYLES

Captured = pytest.CaptureFixture[str]
PLACE = "benchmark/benchmark_imgs/sdv1"


class Red:
    """Scores how red a picture is."""

    preparation = Preparation(networks=())

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        return torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("hps", "hps-legacy"):
        monkeypatch.setitem(metrics.METRICS, name, ImageMetric(name, name.upper(), lambda place: Red()))
    for number, style in enumerate(STYLES):
        picture(Path(PLACE) / style / "00000.jpg", (25 + number, 25 + number, 25 + number))
        Path(f"benchmark/{style}.json").write_text(json.dumps([f"a {style}"]), encoding="utf-8")
    return tmp_path


def test_means_stand_beside_the_published_ones(capsys: Captured) -> None:
    assert main(["eval", "calibrate", PLACE]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert "HPDv2's pictures of Stable Diffusion v1.4" in out and "README.md" in out
    assert ["HPS"] in lines and ["HPS-LEGACY"] in lines
    assert ["concept-art", "26.00", "24.87", "+1.13", "1", "0"] in lines
    assert ["average", "26.50", "25.35", "+1.15", "4", "0"] in lines
    assert Path("runs/calibration/sdv1/scores.jsonl").is_file()


def test_a_worker_says_that_others_have_not_finished(capsys: Captured) -> None:
    options = ["--metrics", "hps", "--model", "DL", "--prompts", "benchmark", "--out", "c"]
    assert main(["eval", "calibrate", PLACE, *options, "--worker", "1/2"]) == 0
    assert capsys.readouterr().out == "worker 1 of 2 has scored its share; other workers have not finished yet\n"
    assert main(["eval", "calibrate", PLACE, *options, "--worker", "0/2"]) == 0
    assert "Dreamlike Photoreal 2.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["benchmark/benchmark_imgs"], "unknown model 'benchmark_imgs': use one of SDXL-refiner-0.9, "),
        ([PLACE, "--metrics", "clip"], "there are no published scores of clip: use some of hps, hps-legacy, hps-v2.0"),
        ([PLACE, "--metrics", "hp"], "unknown metric 'hp'"),
        ([PLACE, "--prompts", "nowhere"], "there is no folder nowhere with the lists of anime, concept-art, "),
        ([PLACE, "--worker", "2/2"], "--worker should be I/N with I from 0 to N - 1, but is '2/2'"),
    ],
)
def test_one_sentence_and_nothing_written(arguments: list[str], sentence: str, work: Path, capsys: Captured) -> None:
    before = sorted(work.rglob("*"))
    assert main(["eval", "calibrate", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"rmd: {sentence}") and err.count("\n") == 1
    assert sorted(work.rglob("*")) == before
