"""`rmd scenes`: pictures of captions, and that each builder is called with what was asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from research.scenes import build
from research.scenes.moving import build as moving
from rmd.cli.app import main
from rmd.core.metrics import Interval
from rmd.worlds.still.accuracy import Accuracy

Captured = pytest.CaptureFixture[str]


class Builder:
    """Stands for a function of `research.scenes.build`; remembers how it was called."""

    def __init__(self, result: object) -> None:
        self.result, self.calls = result, list[tuple[tuple[object, ...], dict[str, Any]]]()

    def __call__(self, *arguments: object, **options: Any) -> object:
        options.pop("log")("one line")
        self.calls.append((arguments, options))
        return self.result


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # is for the whole process
    return tmp_path


def test_render(capsys: Captured) -> None:
    assert main(["scenes", "render", "--count", "3", "--seed", "2", "--size", "16", "--out", "it"]) == 0
    assert names(Path("it")) == ["0000.png", "0001.png", "0002.png", "captions.jsonl", "sheet.png"]
    assert capsys.readouterr() == ("3 scenes: it (captions.jsonl); all at a glance: it/sheet.png\n", "")


def test_render_one_caption() -> None:
    text = "a big red striped ball on the left, on sand"
    assert main(["scenes", "render", "--count", "2", "--size", "8", "--text", text]) == 0
    rows = Path("runs/scenes-render/captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["caption"] for row in rows] == [text, text]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["render", "--text", "a cat on a mat"], "'a cat on a mat' is not a caption of the scenes: word it like "),
        (["render", "--out", "mine"], "mine exists and is not an empty folder: choose another --out"),
        (["train-teacher", "--family", "flux"], "unknown family 'flux': use one of sdxl, pixart, sd3, wan"),
        (["train-teacher", "--family", "wan", "--imitate", "t"], "the teacher of moving scenes learns from clips: "),
        (
            ["train-teacher", "--family", "sd3", "--imitate", "t", "--vae", "v"],
            "a teacher that imitates another uses its VAE: ",
        ),
        (["train-teacher", "--family", "wan", "--vae", "mine"], "mine holds no VAE: give the folder that `rmd scenes"),
        (["references", "--out", "new", "--moving"], "no judge of moving scenes in new: build one with `rmd scenes"),
        (["render", "--moving", "--text", "a cat"], "'a cat' is not a caption of the moving scenes: word it like "),
        (
            ["train-teacher", "--vae", "mine"],
            "mine holds no VAE: give the folder that `python -m research.scenes train-vae` wrote",
        ),
        (
            ["references", "--out", "new"],
            "no judge in new: build one with `python -m research.scenes train-judge --out new`",
        ),
        (["train-vae", "--out", "mine/file"], "cannot write to mine/file: File exists; put that right and run"),
        (["train-judge", "--out", "mine/file"], "cannot write to mine/file: File exists; put that right and run"),
    ],
)
def test_one_sentence_and_nothing_written(arguments: list[str], sentence: str, work: Path, capsys: Captured) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "file").touch()
    assert main(["scenes", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"rmd: {sentence}") and err.count("\n") == 1
    assert sorted(str(path.relative_to(work)) for path in work.rglob("*")) == ["mine", "mine/file"]


@pytest.mark.parametrize(
    "arguments", [["render", "--count", "0"], ["render", "--size", "4"], ["train-vae", "--iterations", "1"], ["pain"]]
)
def test_a_wrong_option(arguments: list[str], work: Path, capsys: Captured) -> None:
    assert main(["scenes", *arguments]) == 2
    assert names(work) == []


def test_train_vae(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder(Path("o/vae"))
    monkeypatch.setattr(build, "build_vae_weights", builder)
    assert main(["scenes", "train-vae"]) == 0
    assert capsys.readouterr() == ("vae: o/vae\n", "one line\n")
    assert main(["scenes", "train-vae", "--out", "o", "--cache", "c", "--seed", "3", "--iterations", "9"]) == 0
    usual = {"cache": Path("runs/scenes-cache"), "seed": 0, "iterations": build.VAE_ITERATIONS}
    assert builder.calls == [
        ((Path("runs/scenes-build"),), usual),
        ((Path("o"),), {"cache": Path("c"), "seed": 3, "iterations": 9}),
    ]


def test_train_teacher(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder(Path("o/teacher"))
    monkeypatch.setattr(build, "build_teacher", builder)
    assert main(["scenes", "train-teacher", "--out", "o", "--vae", "v", "--iterations", "80", "--seed", "1"]) == 0
    assert capsys.readouterr().out == "teacher: o/teacher\n"
    expected = {
        "cache": Path("runs/scenes-cache"),
        "family": "sdxl",
        "seed": 1,
        "iterations": 80,
        "vae": Path("v"),
        "imitate": None,
    }
    assert builder.calls == [((Path("o"),), expected)]
    assert main(["scenes", "train-teacher", "--family", "sd3", "--imitate", "t"]) == 0
    assert (builder.calls[1][1]["family"], builder.calls[1][1]["imitate"]) == ("sd3", Path("t"))


def test_train_judge(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder(Accuracy(Interval(0.97, 0.96, 0.98), {"layout": 1.0, "shape_a": 0.985}))
    monkeypatch.setattr(build, "build_judge", builder)
    assert main(["scenes", "train-judge", "--out", "o", "--cache", "c"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "judge: o/judge.safetensors",
        "unseen scenes with all attributes right: 0.9700 (95 % 0.9600 to 0.9800)",
        "by attribute: layout 1.0000, shape_a 0.9850",
    ]
    assert builder.calls == [((Path("o"),), {"cache": Path("c"), "seed": 0, "iterations": build.JUDGE_ITERATIONS})]


def test_references(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder(SimpleNamespace(renders=[0] * 5, teacher=[0] * 4))
    monkeypatch.setattr(build, "build_references", builder)
    assert main(["scenes", "references", "--out", "o", "--teacher", "t", "--judge", "j"]) == 0
    assert capsys.readouterr().out == "references: o/references.safetensors (5 renders, 4 teacher samples)\n"
    expected = {"cache": Path("runs/scenes-cache"), "teacher": Path("t"), "judge": Path("j")}
    assert builder.calls == [((Path("o"),), expected)]


def test_render_moving(capsys: Captured) -> None:
    arguments = ["scenes", "render", "--moving", "--count", "2", "--size", "16", "--out", "it"]
    assert main([*arguments, "--text", "a red star moves right fast, on sand"]) == 0
    assert names(Path("it")) == ["0000.webp", "0001.webp", "captions.jsonl", "sheet.webp"]
    assert capsys.readouterr() == ("2 clips: it (captions.jsonl); all at a glance: it/sheet.webp\n", "")
    row = json.loads(Path("it/captions.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert row["attributes"] == {"background": 0, "shape": 4, "colour": 0, "motion": 1, "speed": 1}
    with Image.open("it/sheet.webp") as sheet:
        assert sheet.n_frames == 9


def test_moving_parts(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    vae, teacher = Builder(Path("o/vae")), Builder(Path("o/teacher"))
    half = Interval(0.5, 0.4, 0.6)
    judge = Builder(SimpleNamespace(attributes=half, motion=half, speed=half))
    references = Builder(SimpleNamespace(render_changes=[0] * 4))
    for name, builder in (
        ("build_clip_vae_weights", vae), ("build_clip_teacher", teacher), ("build_frame_judge", judge),
        ("build_clip_references", references),
    ):  # fmt: skip
        monkeypatch.setattr(moving, name, builder)
    assert main(["scenes", "train-vae", "--moving", "--out", "o"]) == 0
    assert main(["scenes", "train-teacher", "--family", "wan", "--out", "o", "--iterations", "24", "--seed", "2"]) == 0
    assert main(["scenes", "train-judge", "--moving", "--out", "o"]) == 0
    assert main(["scenes", "references", "--moving", "--out", "o", "--judge", "j"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "vae: o/vae",
        "teacher: o/teacher",
        "judge: o/frame-judge.safetensors",
        "unseen clips: frames with all attributes right 0.5000; motion right 0.5000; speed too 0.5000",
        "references: o/clip-references.safetensors (4 renders and teacher samples)",
    ]
    curriculum = teacher.calls[0][1]["curriculum"]
    assert (curriculum.low_iterations, curriculum.high_iterations, curriculum.seed) == (5, 19, 2)
    assert vae.calls[0][1]["iterations"] == moving.CLIP_VAE_ITERATIONS
    assert judge.calls[0][1]["iterations"] == moving.CLIP_JUDGE_ITERATIONS
    assert references.calls[0][1]["judge"] == Path("j")


def test_threads_and_denormals(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "set_flush_denormal", asked.append)
    monkeypatch.setattr(build, "build_vae_weights", Builder(Path("v")))
    assert main(["scenes", "train-vae", "--threads", "3"]) == 0
    assert asked == [3, True]
    assert main(["scenes", "train-vae"]) == 0
    assert asked == [3, True, True]


def test_every_command_has_a_help_line(capsys: Captured) -> None:
    assert main(["scenes", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("render", "train-vae", "train-teacher", "train-judge", "references"):
        assert name in shown
