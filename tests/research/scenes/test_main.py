"""`python -m research.scenes`: every command calls its builder with what was given, and errors are one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from research.scenes import build, gates
from research.scenes.__main__ import app
from research.scenes.gates import Gate
from research.scenes.kits import SCENES, VISTAS
from research.scenes.moving import build as moving
from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.worlds.base import Measured

Captured = pytest.CaptureFixture[str]


class Builder:
    """Stands for a function of `research.scenes.build`, and remembers how it was called."""

    def __init__(self, result: object) -> None:
        self.result, self.calls = result, list[tuple[tuple[object, ...], dict[str, Any]]]()

    def __call__(self, *arguments: object, **options: Any) -> object:
        options.pop("log")("one line")
        self.calls.append((arguments, options))
        return self.result


def run(arguments: Sequence[str]) -> None:
    """Run a command in this process."""
    app(list(arguments), standalone_mode=False)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # would hold for the whole process
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train-teacher", "--family", "flux"], "unknown family of scenes 'flux': use one of sdxl, pixart, sd3"),
        (["train-teacher", "--world", "vistas", "--family", "sd3"], "unknown family of vistas 'sd3': use sdxl"),
        (
            ["train-vae", "--world", "vista"],
            "unknown world 'vista' (did you mean 'vistas'?): use one of scenes, vistas",
        ),
        (
            ["train-teacher", "--world", "moving-scenes", "--imitate", "t"],
            "the teacher of moving scenes is trained on clips and cannot imitate another one: ",
        ),
        (
            ["train-teacher", "--family", "sd3", "--imitate", "t", "--vae", "v"],
            "a teacher that imitates another uses its VAE: ",
        ),
        (["train-teacher", "--world", "moving-scenes", "--vae", "mine"], "mine holds no VAE: give the folder that `"),
        (
            ["references", "--out", "new", "--world", "moving-scenes"],
            "no judge of moving scenes in new: build one ",
        ),
        (["refine-teacher", "--teacher", "t", "--world", "scenes"], "unknown world 'scenes': use vistas"),
        (["refine-teacher", "--teacher", "t"], "there is no teacher t: build one with `"),
        (["train-teacher", "--vae", "mine"], "mine holds no VAE: give the folder that `"),
        (["references", "--out", "new"], "no judge in new: build one with `"),
        (["train-vae", "--out", "mine/file"], "cannot write to mine/file: File exists; put that right and run"),
        (["train-judge", "--out", "mine/file"], "cannot write to mine/file: File exists; put that right and run"),
    ],
)
def test_one_sentence_and_nothing_written(arguments: list[str], sentence: str, work: Path) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "file").touch()
    with pytest.raises(RMDError) as error:
        run(arguments)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)
    assert sorted(str(path.relative_to(work)) for path in work.rglob("*")) == ["mine", "mine/file"]


def test_train_vae(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder(Path("o/vae"))
    monkeypatch.setattr(build, "build_vae_weights", builder)
    run(["train-vae"])
    assert capsys.readouterr() == ("vae: o/vae\n", "one line\n")
    run(["train-vae", "--out", "o", "--cache", "c", "--seed", "3", "--iterations", "9"])
    usual = {"cache": Path("runs/scenes-cache"), "kit": SCENES, "seed": 0, "iterations": None}
    assert builder.calls == [
        ((Path("runs/scenes-build"),), usual),
        ((Path("o"),), {"cache": Path("c"), "kit": SCENES, "seed": 3, "iterations": 9}),
    ]


def test_train_teacher(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder(Path("o/teacher"))
    monkeypatch.setattr(build, "build_teacher", builder)
    run(["train-teacher", "--out", "o", "--vae", "v", "--iterations", "80", "--seed", "1"])
    assert capsys.readouterr().out == "teacher: o/teacher\n"
    expected = {
        "cache": Path("runs/scenes-cache"),
        "kit": SCENES,
        "family": "sdxl",
        "seed": 1,
        "iterations": 80,
        "vae": Path("v"),
        "imitate": None,
    }
    assert builder.calls == [((Path("o"),), expected)]
    run(["train-teacher", "--family", "sd3", "--imitate", "t"])
    assert (builder.calls[1][1]["family"], builder.calls[1][1]["imitate"]) == ("sd3", Path("t"))


def test_refine_teacher(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder(Path("o/teacher"))
    monkeypatch.setattr(build, "refine_teacher", builder)
    run(["refine-teacher", "--teacher", "t", "--out", "o", "--cache", "c", "--iterations", "80"])
    assert capsys.readouterr().out == "teacher: o/teacher\n"
    expected = {"teacher": Path("t"), "cache": Path("c"), "kit": VISTAS, "seed": 0, "iterations": 80}
    assert builder.calls == [((Path("o"),), expected)]


def test_train_judge(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder(Measured(value=0.97, low=0.96, high=0.98, parts={"layout": 1.0, "shape_a": 0.985}))
    monkeypatch.setattr(build, "build_judge", builder)
    run(["train-judge", "--out", "o", "--cache", "c"])
    assert capsys.readouterr().out.splitlines() == [
        "judge: o/judge.safetensors",
        "unseen pictures with all attributes right: 0.9700 (95 % 0.9600 to 0.9800)",
        "by attribute: layout 1.0000, shape_a 0.9850",
    ]
    assert builder.calls == [((Path("o"),), {"cache": Path("c"), "kit": SCENES, "seed": 0, "iterations": None})]


def test_references(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    builder = Builder({"renders": [0] * 5, "teacher": [0] * 4})
    monkeypatch.setattr(build, "build_references", builder)
    run(["references", "--out", "o", "--teacher", "t", "--judge", "j"])
    assert capsys.readouterr().out == "references: o/references.safetensors (5 renders, 4 teacher samples)\n"
    expected = {"cache": Path("runs/scenes-cache"), "kit": SCENES, "teacher": Path("t"), "judge": Path("j")}
    assert builder.calls == [((Path("o"),), expected)]


def test_gates(monkeypatch: pytest.MonkeyPatch, capsys: Captured, work: Path) -> None:
    found = [Gate("a", "at least 90%", "91.0% [89.0, 93.0]", True), Gate("b", "at most 5", "6", False)]
    opened = Builder(object())
    monkeypatch.setattr(gates, "open_bench", lambda *args, **options: opened(*args, log=str, **options))
    monkeypatch.setattr(gates, "measure_gates", lambda bench, crossing, log: found)
    (work / "t").mkdir()
    run(["gates", "--world", "vistas", "--teacher", "t", "--judge", "j", "--samples", "20", "--report", "gates.json"])
    assert capsys.readouterr().out == gates.gates_markdown(found)
    report = read_model(work / "gates.json", gates.GateReport)
    assert (report.world, report.samples, report.crossing) == ("vistas", 20, 500) and list(report.gates) == found
    assert opened.calls == [((VISTAS, Path("t"), Path("j")), {"samples": 20, "steps": 25, "guidance": 3.0, "seed": 41})]


def test_moving_parts(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    vae, teacher = Builder(Path("o/vae")), Builder(Path("o/teacher"))
    half = Measured(value=0.5, low=0.4, high=0.6)
    judge = Builder({"attributes": half, "motion": half, "speed": half})
    references = Builder({"render_changes": [0] * 4})
    for name, builder in (
        ("build_clip_vae_weights", vae), ("build_clip_teacher", teacher), ("build_frame_judge", judge),
        ("build_clip_references", references),
    ):  # fmt: skip
        monkeypatch.setattr(moving, name, builder)
    run(["train-vae", "--world", "moving-scenes", "--out", "o"])
    run(["train-teacher", "--world", "moving-scenes", "--out", "o", "--iterations", "24", "--seed", "2"])
    run(["train-judge", "--world", "moving-scenes", "--out", "o"])
    run(["references", "--world", "moving-scenes", "--out", "o", "--judge", "j"])
    assert capsys.readouterr().out.splitlines() == [
        "vae: o/vae",
        "teacher: o/teacher",
        "judge: o/frame-judge.safetensors",
        "unseen clips: frames with all attributes right 0.5000; motion right 0.5000; motion and speed right 0.5000",
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
    run(["train-vae", "--threads", "3"])
    assert asked == [3, True]
    run(["train-vae"])
    assert asked == [3, True, True]
