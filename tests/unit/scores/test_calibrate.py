"""Calibration: the published table, and scores of pictures in the authors' layout beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from studies import picture
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.scores.calibrate import AVERAGE, VERSIONS, calibrate, published
from rmd.scores.metrics import METRICS, ImageMetric, Place
from rmd.scores.result import Preparation
from rmd.scores.suites import STYLES, average_of


class Red:
    """Scores how red a picture is."""

    preparation = Preparation(networks=())

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        return torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])


def hps(name: str = "hps") -> ImageMetric:
    return ImageMetric(name, name, lambda place: Red())


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Write two pictures of each style, of two sizes, as the authors' archives unpack."""
    folder = tmp_path / "benchmark"
    for row, style in enumerate(STYLES):
        folder.mkdir(exist_ok=True)
        (folder / f"{style}.json").write_text(json.dumps([f"{style} 0", f"{style} 1"]), encoding="utf-8")
        for number in range(2):
            path = folder / "benchmark_imgs" / "SDXL-base-0.9" / style / f"{number:05d}.png"
            picture(path, (20 + 10 * row + 2 * number, 0, 0), side=16 + row)
    return folder


def test_the_published_table_is_whole() -> None:
    """Its averages are those of its four styles to a hundredth, as far as their rounding allows."""
    table = published()
    assert len(table.models) == 22 and table.models["sdv1"].title == "Stable Diffusion v1.4"
    for model in table.models.values():
        assert model.scores.keys() == set(VERSIONS.values())
        for scores in model.scores.values():
            average = average_of(dict(zip(STYLES, scores[:4], strict=True)), STYLES)
            assert average == pytest.approx(scores[4], abs=0.0101), model.title
    assert table.models["SDXL-refiner-0.9"].scores["v2.1"] == (33.26, 32.07, 31.63, 28.38, 31.34)
    assert table.models["SDXL-base-0.9"].scores["v2.0"][4] == 27.73
    assert set(VERSIONS) <= set(METRICS)


def test_scores_stand_beside_the_published_ones(benchmark: Path, tmp_path: Path) -> None:
    place = benchmark / "benchmark_imgs" / "SDXL-base-0.9"
    found = calibrate(
        str(place), str(benchmark), [hps(), hps("hps-v2.0")], Place(), tmp_path / "out", model=place.name, batch_size=3
    )
    assert found is not None and found.title == "SDXL Base 0.9" and "866735e" in found.source
    lines = found.metrics["hps"]
    assert list(lines) == [*STYLES, AVERAGE]
    assert [line.ours.mean for line in lines.values()] == [21, 31, 41, 51, 36]
    assert [line.published for line in lines.values()] == [32.84, 31.36, 30.86, 27.48, 30.63]
    assert lines["photo"].difference == pytest.approx(23.52) and lines[AVERAGE].ours.count == 8
    assert found.metrics["hps-v2.0"]["photo"].published == 27.29
    (place / "photo" / "00001.png").unlink()
    with pytest.raises(RMDError, match=r"^1 of 8 pictures are missing: "):
        calibrate(str(place), str(benchmark), [hps()], Place(), tmp_path / "out", model=place.name)
    found = calibrate(
        str(place), str(benchmark), [hps()], Place(), tmp_path / "out", model=place.name, allow_missing=True
    )  # fmt: skip
    assert found is not None and found.metrics["hps"]["photo"].ours.missing == 1
    assert found.metrics["hps"][AVERAGE].ours.mean == pytest.approx((21 + 31 + 41 + 50) / 4)


def test_workers_share_a_calibration(benchmark: Path, tmp_path: Path) -> None:
    place = benchmark / "benchmark_imgs" / "SDXL-base-0.9"
    ended = [
        calibrate(str(place), str(benchmark), [hps()], Place(), tmp_path / "out", model=place.name, worker=(number, 2))
        for number in range(2)
    ]
    assert ended[0] is None and ended[1] is not None
    assert ended[1].metrics["hps"][AVERAGE].ours.mean == 36


def test_what_was_not_published_is_refused(benchmark: Path, tmp_path: Path) -> None:
    place = benchmark / "benchmark_imgs" / "SDXL-base-0.9"
    with pytest.raises(RMDError, match=r"^unknown model 'SDXL-base-0\.8' \(did you mean 'SDXL-base-0\.9'\?\)"):
        calibrate(str(place), str(benchmark), [hps()], Place(), tmp_path / "out", model="SDXL-base-0.8")
    with pytest.raises(RMDError, match=r"^there are no published scores of clip: use some of hps, hps-legacy, hps-v2"):
        calibrate(str(place), str(benchmark), [hps("clip")], Place(), tmp_path / "out", model=place.name)
    with pytest.raises(
        RMDError, match=r"anime has no folders called anime, .*: unpack the authors' archive of a model$"
    ):
        calibrate(str(place / "anime"), str(benchmark), [hps()], Place(), tmp_path / "out", model=place.name)
    assert not (tmp_path / "out").exists()
