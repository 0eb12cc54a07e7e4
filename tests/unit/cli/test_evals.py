"""`rmd eval images` and `compare`: scores of folders, comparisons, and errors in one sentence."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from studies import picture
from torch import Tensor

from rmd.cli.app import main
from rmd.scores import distances, metrics
from rmd.scores.calibrate import VERSIONS
from rmd.scores.dino import Features
from rmd.scores.distances import Distance
from rmd.scores.metrics import ImageMetric, Place
from rmd.scores.result import Network, Preparation, read_result
from rmd.scores.suites import STYLES

Captured = pytest.CaptureFixture[str]


class Red:
    """Scores how red a picture is."""

    preparation = Preparation(networks=(Network(name="red", files={}),))

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        return torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(metrics.METRICS, "red", ImageMetric("red", "redness", lambda place: Red(), digits=1))
    return tmp_path


def albums() -> None:
    """Write pictures of two models, of which the second is redder."""
    for name, more in (("one", 0), ("two", 3)):
        for seed in range(6):
            picture(Path(name) / f"{seed}.png", (10 * seed + more, 0, 0), prompt=f"prompt {seed // 2}", seed=seed)


def test_two_models_are_scored_and_compared(capsys: Captured) -> None:
    albums()
    assert main(["eval", "images", "one", "--metrics", "red"]) == 0
    out = capsys.readouterr().out
    assert "one, 3 prompts (the pictures' own), 16 x 16 PNG" in out and "redness" in out and "25.0" in out
    assert out.endswith(f"result: {Path('runs/scores/one')}\n")
    assert main(["eval", "images", "two", "--metrics", "red", "--out", "b", "--name", "second"]) == 0
    result, table = read_result(Path("b"))
    assert result.making.model == "second" and table.values["red"].tolist() == [3, 13, 23, 33, 43, 53]
    capsys.readouterr()
    assert main(["eval", "compare", "b", "runs/scores/one"]) == 0
    out = capsys.readouterr().out
    assert "second and one" in out and "3.0 to 3.0" in out and "100.0%" in out
    Path("p.txt").write_text("".join(f"prompt {i}\n" for i in range(4)), encoding="utf-8")
    assert main(["eval", "images", "two", "--metrics", "red", "--prompts", "p.txt", "--allow-missing"]) == 0
    capsys.readouterr()
    assert main(["eval", "compare", "runs/scores/two", "runs/scores/one"]) == 1
    assert capsys.readouterr().err == (
        "rmd: these results cannot be compared: prompts.name is 'p.txt' in two's and \"the pictures' own\" in one's; "
        "score both in the same way\n"
    )


def test_distances_of_two_folders(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    albums()

    def features(place: Place) -> Features:
        return Features(lambda images: torch.tensor([[float(i.getpixel((0, 0))[0])] for i in images]), Red.preparation)

    means = Distance("means", "difference of means", features, lambda x, y: (float((x - y).mean()), None, None))
    monkeypatch.setitem(distances.DISTANCES, "means", means)
    assert main(["eval", "distance", "two", "one", "--metrics", "means"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "difference of means" in line)
    assert line.split()[-4:] == ["3.00", "-", "6", "6"]
    assert main(["eval", "distance", "two", "nothing", "--metrics", "means"]) == 1
    assert capsys.readouterr().err.startswith("rmd: there are no samples (.png, .jpg, .jpeg, .webp) in nothing: ")


def test_a_missing_package_is_noticed_before_anything_is_scored(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    albums()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["eval", "images", "one", "--metrics", "red"]) == 1
    assert capsys.readouterr().err == (
        "rmd: the scores of single pictures need one more package: pip install 'rmd[data]'\n"
    )  # fmt: skip
    assert not Path("runs").exists()


def test_what_is_missing_is_said(capsys: Captured) -> None:
    albums()
    Path("one/5.png").unlink()
    assert main(["eval", "images", "one", "--metrics", "red"]) == 1
    assert capsys.readouterr().err.startswith("rmd: 1 of 6 pictures are missing: ")
    assert main(["eval", "images", "one", "--metrics", "red", "--allow-missing"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "redness" in line] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["images", "one", "--metrics", "reed"], "unknown metric 'reed' (did you mean 'red'?)"),
        (["images", "one", "--metrics", ","], "no metric is named: use some of "),
        (["images", "nothing", "--metrics", "red"], "there are no samples (.png, .jpg, .jpeg, .webp) in nothing: "),
        (["images", "one", "--metrics", "red", "--dtype", "int8"], "unknown dtype 'int8': use one of float32, "),
        (["images", "one", "--metrics", "hps", "--weights", "w"], f"{Path('w/xswu/HPSv2/HPS_v2.1_compressed.pt')} is "),
        (["images", "one", "--metrics", "red", "--prompts", "p.txt"], "there is no prompt file p.txt: "),
        (["compare", "one", "two"], "one has no scores.json: score its pictures first"),
    ],
)
def test_one_sentence_and_nothing_written(arguments: list[str], sentence: str, work: Path, capsys: Captured) -> None:
    albums()
    before = sorted(work.rglob("*"))
    assert main(["eval", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"rmd: {sentence}") and err.count("\n") == 1
    assert sorted(work.rglob("*")) == before


def test_the_first_command_may_be_left_out(capsys: Captured) -> None:
    for arguments in (["eval", "nothing"], ["eval", "model", "nothing"]):
        assert main(arguments) == 1
        assert "nothing" in capsys.readouterr().err


def test_every_metric_is_named_in_the_help(capsys: Captured) -> None:
    for command, known in (("images", metrics.METRICS), ("distance", distances.DISTANCES), ("calibrate", VERSIONS)):
        assert main(["eval", command, "--help"]) == 0
        named = set(re.findall(r"[\w.-]+[\w]", capsys.readouterr().out))
        assert set(known) - {"red"} <= named, command


def test_a_result_has_the_means_of_styles(capsys: Captured) -> None:
    Path("styles").mkdir()
    for number, style in enumerate(STYLES):
        picture(Path("one") / style / "0.png", (10 * number, 0, 0))
        Path(f"styles/{style}.json").write_text(json.dumps([f"a {style}"]), encoding="utf-8")
    assert main(["eval", "images", "one", "--metrics", "red", "--prompts", "styles", "--worker", "0/2"]) == 0
    assert capsys.readouterr().out == "worker 0 of 2 has scored its share; other workers have not finished yet\n"
    assert main(["eval", "images", "one", "--metrics", "red", "--prompts", "styles", "--worker", "1/2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["paintings", "20.0", "20.0", "to", "20.0", "1", "0"] in lines
    assert ["average", "of", "4", "15.0", "15.0", "to", "15.0", "4", "0"] in lines
    assert read_result(Path("runs/scores/one"))[0].groups["red"].average.mean == 15


def test_a_place_is_where_networks_run() -> None:
    place = Place(Path("w"), device=torch.device("cpu"), dtype=torch.float16)
    assert place.source("a/b").repository == "a/b" and place.source("a/b").folder == Path("w")
