"""Albums: every picture can be made again from its own file, finished ones are left, others are not overwritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from families import FRAMES, make_student
from helpers import PROMPTS, tiny_sdxl
from numpy.typing import NDArray
from PIL import Image

from rmd.album import KEY, make_album, plan_album, read_making
from rmd.cli.app import main
from rmd.errors import RMDError
from rmd.makers import PipelineMaker, StudentMaker
from rmd.pipeline import RMDPipeline


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("album"), "sdxl", "full")


@pytest.fixture(scope="module")
def pipe(student: Path) -> RMDPipeline:
    found = RMDPipeline.from_pretrained(student)
    found.pipe.set_progress_bar_config(disable=True)
    return found


def pixels(path: Path) -> NDArray[np.int_]:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_names_and_seeds(tmp_path: Path) -> None:
    pictures = plan_album(["A red ball!", "ein  Würfel", "***"], tmp_path, count=2, seed=7)
    assert [picture.seed for picture in pictures] == [7, 8, 9, 10, 11, 12]
    assert [picture.path.name for picture in pictures[::2]] == [
        "00000-00-a-red-ball.png",
        "00001-00-ein-w-rfel.png",
        "00002-00-picture.png",
    ]
    with pytest.raises(RMDError, match=r"^there is no prompt"):
        plan_album([], tmp_path, count=1, seed=0)


def test_a_picture_says_how_to_make_it_again(pipe: RMDPipeline, tmp_path: Path) -> None:
    pictures = plan_album(PROMPTS[:3], tmp_path / "all", count=1, seed=7)
    assert make_album(StudentMaker(pipe, height=24, width=40), pictures, batch_size=2) == 3
    making = read_making(pictures[2].path)
    assert making is not None and making["prompt"] == PROMPTS[2] and making["seed"] == 9
    (again,) = plan_album([making["prompt"]], tmp_path / "again", count=1, seed=making["seed"])
    make_album(StudentMaker(pipe, height=making["height"], width=making["width"]), [again])
    assert np.abs(pixels(again.path) - pixels(pictures[2].path)).max() <= 1
    assert Image.open(again.path).size == (40, 24)


def test_finished_pictures_are_left_and_others_are_not_overwritten(pipe: RMDPipeline, tmp_path: Path) -> None:
    pictures = plan_album(PROMPTS, tmp_path, count=1, seed=0)
    seen: list[int] = []
    assert make_album(StudentMaker(pipe), pictures[:2]) == 2
    before = pictures[0].path.stat().st_mtime_ns
    assert make_album(StudentMaker(pipe), pictures, progress=seen.append) == 2
    assert seen == [2, 2] and pictures[0].path.stat().st_mtime_ns == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png"] * 4
    with pytest.raises(RMDError, match=r"is another picture: remove it, or choose another --out$"):
        make_album(StudentMaker(pipe), plan_album(PROMPTS, tmp_path, count=1, seed=1))
    pictures[3].path.write_text("no picture")
    with pytest.raises(RMDError, match=r"is no picture: remove it, or choose another --out$"):
        make_album(StudentMaker(pipe), pictures)


def test_a_picture_from_elsewhere_is_not_taken_for_ours(pipe: RMDPipeline, tmp_path: Path) -> None:
    (picture,) = plan_album(PROMPTS[:1], tmp_path, count=1, seed=0)
    Image.new("RGB", (8, 8)).save(picture.path)
    assert read_making(picture.path) is None
    with pytest.raises(RMDError, match="is another picture"):
        make_album(StudentMaker(pipe), [picture])


def test_the_stages_lie_beside(pipe: RMDPipeline, tmp_path: Path) -> None:
    (picture,) = plan_album(PROMPTS[:1], tmp_path, count=1, seed=0)
    make_album(StudentMaker(pipe, stages=True), [picture])
    assert [Image.open(picture.beside(f"stage{k}").path).size for k in (1, 2)] == [(16, 16), (32, 32)]
    assert np.array_equal(pixels(picture.beside("stage2").path), pixels(picture.path))
    assert Image.open(picture.beside("stage1").path).info[KEY]


def test_the_command(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--model", str(student), "--out", str(out), "-n", "2", "--seed", "3", "--device", "cpu"]
    assert main(["generate", *PROMPTS[:2], *options, "--compare-teacher", "--teacher-steps", "2"]) == 0
    assert capsys.readouterr().out == f"4 pictures in {out}\n"
    assert len(list(out.glob("*-teacher.png"))) == 4 and len(list(out.glob("[!.]*"))) == 8
    lines = tmp_path / "prompts.txt"
    lines.write_text("\n".join(PROMPTS[:2]), encoding="utf-8")
    assert main(["generate", "--prompts", str(lines), *options]) == 0
    assert capsys.readouterr().out == f"0 pictures in {out} (4 were there already)\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give prompts either as arguments or in a file with --prompts FILE"),
        (["a ball", "--prompts", "x.txt"], "give prompts either as arguments or in a file with --prompts FILE"),
        (["--prompts", "none.txt"], "there is no prompt file none.txt: give a text file with one prompt a line"),
        (
            ["a ball", "--model", "nowhere/at-all"],
            "nowhere/at-all is no folder and not in the cache",
        ),
        (["a ball", "--model", "MODEL", "--height", "30"], "the final size, 30x32, is not divisible by 4"),
    ],
)
def test_one_sentence(
    arguments: list[str], sentence: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(student) if a == "MODEL" else a for a in arguments]
    out = tmp_path / "out"
    assert main(["generate", *given, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rmd: ") and error.count("\n") == 1 and sentence in error
    assert not out.exists()


def test_seeds_follow_one_another(pipe: RMDPipeline, tmp_path: Path) -> None:
    pictures = plan_album(PROMPTS[:1], tmp_path, count=3, seed=5)
    make_album(StudentMaker(pipe), pictures, batch_size=3)
    expected = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(7)).images[0]
    assert np.abs(pixels(pictures[2].path) - np.asarray(expected).astype(int)).max() <= 1


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "pipeline"
    tiny_sdxl().pipe.save_pretrained(folder)
    return folder


def test_any_pipeline_makes_albums_by_its_own_call(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--model", str(plain), "--out", str(out), "--seed", "3", "--device", "cpu", "--height", "24"]
    assert main(["generate", *PROMPTS[:3], *options, "--steps", "2", "--guidance", "3", "--batch-size", "2"]) == 0
    assert capsys.readouterr().out == f"3 pictures in {out}\n"
    (last,) = out.glob("00002*")
    making = read_making(last)
    assert making is not None
    assert {**making, "version": ""} == {
        "version": "", "model": str(plain), "num_inference_steps": 2, "guidance_scale": 3.0, "height": 24,
        "prompt": PROMPTS[2], "seed": 5,
    }  # fmt: skip
    pipe = tiny_sdxl().pipe
    expected = pipe(
        PROMPTS[2], height=24, num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(5)
    ).images[0]
    assert np.abs(pixels(last) - np.asarray(expected).astype(int)).max() <= 1
    # other steps are another picture
    assert main(["generate", PROMPTS[0], *options, "--steps", "3", "--guidance", "3"]) == 1
    assert "is another picture" in capsys.readouterr().err


def test_what_a_pipeline_does_not_take(
    plain: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, more, sentence in (
        (plain, ["--frames", "3"], f"{plain} is a StableDiffusionXLPipeline, which takes no frames: leave it out"),
        (plain, ["--stages"], f"--stages is of students, but {plain} is a diffusers pipeline: leave it out"),
        (plain, ["--compare-teacher"], "--compare-teacher is of students"),
        (plain, ["--format", "gif"], f"--format is of clips, but {plain} makes single pictures: leave it out"),
        (student, ["--steps", "3"], f"--steps is of diffusers pipelines, but {student} is a student with its own plan"),
        (student, ["--guidance", "3"], "--guidance is of diffusers pipelines"),
        (tmp_path, [], f"{tmp_path} holds neither a student nor a diffusers pipeline: it has no rmd_config.json"),
    ):
        assert main(["generate", "a ball", "--model", str(model), "--out", str(tmp_path / "out"), *more]) == 1
        error = capsys.readouterr().err
        assert error.startswith("rmd: ") and error.count("\n") == 1 and sentence in error
    pipe = tiny_sdxl().pipe
    assert not PipelineMaker(pipe, "x").moving
    with pytest.raises(RMDError, match=r"^x is a DDPMPipeline, which takes no prompt$"):
        PipelineMaker(DDPMPipeline(unet=pipe.unet, scheduler=pipe.scheduler), "x")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("clips"), "wan", "lora")


def test_clips_have_their_making_beside_them(moving: Path, tmp_path: Path) -> None:
    pipe = RMDPipeline.from_pretrained(moving)
    pipe.pipe.set_progress_bar_config(disable=True)
    pictures = plan_album(PROMPTS[:2], tmp_path, count=1, seed=4, suffix=".webp")
    assert make_album(StudentMaker(pipe, stages=True, fps=8), pictures) == 2
    names = [path.name for path in sorted(tmp_path.iterdir()) if path.name.startswith("00001")]
    stem = pictures[1].path.stem
    assert names == [f"{stem}{end}" for end in (
        "-stage1.webp", "-stage1.webp.json", "-stage2.webp", "-stage2.webp.json", ".webp", ".webp.json"
    )]  # fmt: skip
    making = read_making(pictures[1].path)
    assert making is not None and (making["frames"], making["fps"], making["seed"]) == (FRAMES, 8, 5)
    with Image.open(pictures[1].path) as clip:
        assert clip.n_frames == FRAMES
    assert make_album(StudentMaker(pipe, fps=8), pictures) == 0
    with pytest.raises(RMDError, match="is another picture"):
        make_album(StudentMaker(pipe, fps=16), pictures)
    pictures[0].path.with_name(f"{pictures[0].path.name}.json").unlink()
    with pytest.raises(RMDError, match="is another picture"):
        make_album(StudentMaker(pipe, fps=8), pictures)


def test_the_command_writes_one_clip(moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clip.mp4"
    options = ["--model", str(moving), "--frames", "3", "--fps", "4", "--device", "cpu", "--out"]
    assert main(["generate", PROMPTS[0], *options, str(out), "--compare-teacher", "--teacher-steps", "2"]) == 0
    assert capsys.readouterr().out == f"1 clip in {out}\n"
    files = ["clip-teacher.mp4", "clip-teacher.mp4.json", "clip.mp4", "clip.mp4.json"]
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == files
    for arguments, sentence in (
        ([PROMPTS[0], "-n", "2", *options, str(out)], f"2 samples do not go into the one file {out}"),
        ([PROMPTS[0], *options, str(tmp_path / "f"), "--format", "avi"], "--format 'avi'"),
        ([PROMPTS[0], *options, str(tmp_path / "f"), "--frames", "4"], "wan makes 1 + 2 n frames, which 4 is not"),
    ):
        assert main(["generate", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("rmd: ") and error.count("\n") == 1 and sentence in error


def test_a_format_of_clips_is_nothing_to_a_family_of_pictures(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["a ball", "--model", str(student), "--out", str(tmp_path / "out")]
    for more, sentence in (
        (["--format", "gif"], "--format is of clips"), (["--frames", "5"], "sdxl makes single pictures, not 5 frames")
    ):  # fmt: skip
        assert main(["generate", *arguments, *more]) == 1
        assert sentence in capsys.readouterr().err
