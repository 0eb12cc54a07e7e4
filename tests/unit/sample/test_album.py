"""Albums: every picture is reproducible from its settings, finished ones are kept, others are not overwritten."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FRAMES, TINY, make_student
from helpers import PROMPTS, tiny_sdxl
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.common.files import locked
from rmd.sample.album import KEY, Album, make_album, plan_album, read_settings, writing
from rmd.sample.pipeline import RMDPipeline
from rmd.sample.samplers import PipelineSampler, Sample, StudentSampler


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("album"), "sdxl", "full")


@pytest.fixture(scope="module")
def pipe(student: Path) -> RMDPipeline:
    loaded = RMDPipeline.from_pretrained(student)
    loaded.set_progress_bar_config(disable=True)
    return loaded


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


def test_a_picture_can_be_reproduced_from_its_settings(pipe: RMDPipeline, tmp_path: Path) -> None:
    pictures = plan_album(PROMPTS[:3], tmp_path / "all", count=1, seed=7)
    assert make_album(StudentSampler(pipe, height=24, width=40), pictures, batch_size=2) == 3
    settings = read_settings(pictures[2].path)
    assert settings is not None and settings["prompt"] == PROMPTS[2] and settings["seed"] == 9
    (again,) = plan_album([settings["prompt"]], tmp_path / "again", count=1, seed=settings["seed"])
    make_album(StudentSampler(pipe, height=settings["height"], width=settings["width"]), [again])
    assert np.abs(pixels(again.path) - pixels(pictures[2].path)).max() <= 1
    assert Image.open(again.path).size == (40, 24)


def test_finished_pictures_are_kept_and_others_are_not_overwritten(pipe: RMDPipeline, tmp_path: Path) -> None:
    pictures = plan_album(PROMPTS, tmp_path, count=1, seed=0)
    seen: list[int] = []
    assert make_album(StudentSampler(pipe), pictures[:2]) == 2
    before = pictures[0].path.stat().st_mtime_ns
    assert make_album(StudentSampler(pipe), pictures, progress=seen.append) == 2
    assert seen == [2, 2] and pictures[0].path.stat().st_mtime_ns == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png"] * 4
    with pytest.raises(RMDError, match=r"is another picture: remove it, or choose another --out$"):
        make_album(StudentSampler(pipe), plan_album(PROMPTS, tmp_path, count=1, seed=1))
    pictures[3].path.write_text("no picture")
    with pytest.raises(RMDError, match=r"is not a picture: remove it, or choose another --out$"):
        make_album(StudentSampler(pipe), pictures)


def test_a_picture_without_settings_is_not_overwritten(pipe: RMDPipeline, tmp_path: Path) -> None:
    (picture,) = plan_album(PROMPTS[:1], tmp_path, count=1, seed=0)
    Image.new("RGB", (8, 8)).save(picture.path)
    assert read_settings(picture.path) is None
    with pytest.raises(RMDError, match="is another picture"):
        make_album(StudentSampler(pipe), [picture])


def test_stages_are_saved_beside_the_picture(pipe: RMDPipeline, tmp_path: Path) -> None:
    (picture,) = plan_album(PROMPTS[:1], tmp_path, count=1, seed=0)
    make_album(StudentSampler(pipe, stages=True), [picture])
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
    assert capsys.readouterr().out == f"0 pictures in {out} (4 existed already)\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give prompts either as arguments or in a file with --prompts FILE"),
        (["a ball", "--prompts", "x.txt"], "give prompts either as arguments or in a file with --prompts FILE"),
        (["--prompts", "none.txt"], "there is no prompt file none.txt: give a text file with one prompt per line"),
        (
            ["a ball", "--model", "nowhere/at-all"],
            "nowhere/at-all is neither a folder nor in the cache",
        ),
        (["a ball", "--model", "MODEL", "--height", "30"], "the final size, 30x32, is not divisible by 4"),
    ],
)
def test_errors_are_one_sentence(
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
    make_album(StudentSampler(pipe), pictures, batch_size=3)
    expected = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(7)).images[0]
    assert np.abs(pixels(pictures[2].path) - np.asarray(expected).astype(int)).max() <= 1


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("clips"), "wan", "lora")


def test_clips_have_their_settings_beside_them(moving: Path, tmp_path: Path) -> None:
    pipe = RMDPipeline.from_pretrained(moving)
    pipe.set_progress_bar_config(disable=True)
    pictures = plan_album(PROMPTS[:2], tmp_path, count=1, seed=4, suffix=".webp")
    assert make_album(StudentSampler(pipe, stages=True, fps=8), pictures) == 2
    names = [path.name for path in sorted(tmp_path.iterdir()) if path.name.startswith("00001")]
    stem = pictures[1].path.stem
    assert names == [f"{stem}{end}" for end in (
        "-stage1.webp", "-stage1.webp.json", "-stage2.webp", "-stage2.webp.json", ".webp", ".webp.json"
    )]  # fmt: skip
    settings = read_settings(pictures[1].path)
    assert settings is not None and (settings["frames"], settings["fps"], settings["seed"]) == (FRAMES, 8, 5)
    with Image.open(pictures[1].path) as clip:
        assert clip.n_frames == FRAMES
    assert make_album(StudentSampler(pipe, fps=8), pictures) == 0
    with pytest.raises(RMDError, match="is another picture"):
        make_album(StudentSampler(pipe, fps=16), pictures)
    pictures[0].path.with_name(f"{pictures[0].path.name}.json").unlink()
    with pytest.raises(RMDError, match="is another picture"):
        make_album(StudentSampler(pipe, fps=8), pictures)


def test_the_command_writes_one_clip(moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clip.mp4"
    options = ["--model", str(moving), "--frames", "3", "--fps", "4", "--device", "cpu", "--out"]
    assert main(["generate", PROMPTS[0], *options, str(out), "--compare-teacher", "--teacher-steps", "2"]) == 0
    assert capsys.readouterr().out == f"1 clip in {out}\n"
    files = ["clip-teacher.mp4", "clip-teacher.mp4.json", "clip.mp4", "clip.mp4.json"]
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == files
    for arguments, sentence in (
        ([PROMPTS[0], "-n", "2", *options, str(out)], f"2 samples cannot be saved in the one file {out}"),
        ([PROMPTS[0], *options, str(tmp_path / "f"), "--format", "avi"], "--format 'avi'"),
        ([PROMPTS[0], *options, str(tmp_path / "f"), "--frames", "4"], "wan makes clips of 1 + 2 n frames, not of 4"),
    ):
        assert main(["generate", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("rmd: ") and error.count("\n") == 1 and sentence in error


def test_clip_options_are_refused_for_models_of_pictures(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["a ball", "--model", str(student), "--out", str(tmp_path / "out")]
    for more, sentence in (
        (["--format", "gif"], "--format is for clips"), (["--frames", "5"], "sdxl makes single pictures, not 5 frames")
    ):  # fmt: skip
        assert main(["generate", *arguments, *more]) == 1
        assert sentence in capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of an album but the lock, whose name starts with a dot."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_an_album_that_was_interrupted_ends_with_the_same_bytes(
    family: str, student: Path, moving: Path, tmp_path: Path
) -> None:
    """Files are written atomically, so an interruption leaves some of them, and partial ones."""
    loaded = RMDPipeline.from_pretrained(student if family == "sdxl" else moving)
    loaded.set_progress_bar_config(disable=True)
    sampler = StudentSampler(loaded, stages=True)
    suffix = ".png" if family == "sdxl" else ".webp"
    pictures = plan_album(PROMPTS, tmp_path, count=1, seed=3, suffix=suffix)
    assert make_album(sampler, pictures, batch_size=3) == 4
    whole = contents(tmp_path)
    for lost in ([0], [1], [2, 3], [3]):
        for index in lost:
            pictures[index].path.unlink()
            (tmp_path / f".{pictures[index].path.name}.partial").write_bytes(b"half of it")
        pictures[lost[0]].beside("stage2").path.unlink()
        seen: list[int] = []
        assert make_album(sampler, pictures, batch_size=3, progress=seen.append) == len(lost)
        assert contents(tmp_path) == whole and sum(seen) == 4
        assert not list(tmp_path.glob(".*.partial"))


def generate_until_killed(arguments: list[str], files: int) -> None:
    """Run the command in a process that kills itself before it would complete one more file."""
    replace, left = Path.replace, [files]

    def kill(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace = kill  # type: ignore[method-assign, assignment]  # in this process only
    main(arguments)


def test_a_killed_command_can_be_resumed(student: Path, tmp_path: Path) -> None:
    options = ["generate", *PROMPTS, "--model", str(student), "--batch-size", "3", "--device", "cpu", "--out"]
    out = tmp_path / "out"
    assert main([*options, str(tmp_path / "whole")]) == 0
    process = multiprocessing.get_context("fork").Process(target=generate_until_killed, args=([*options, str(out)], 2))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(contents(out)) == 2 and list(out.glob(".*.partial"))
    assert main([*options, str(out)]) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.glob(".*.partial"))


def test_stages_that_are_requested_later_are_added(pipe: RMDPipeline, tmp_path: Path) -> None:
    pictures = plan_album(PROMPTS[:2], tmp_path, count=1, seed=0)
    assert make_album(StudentSampler(pipe), pictures) == 2
    before = contents(tmp_path)
    assert make_album(StudentSampler(pipe, stages=True), pictures) == 2
    assert len(contents(tmp_path)) == 6 and before.items() <= contents(tmp_path).items()
    assert make_album(StudentSampler(pipe, stages=True), pictures) == 0


def test_an_album_has_one_writer(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(student), "--device", "cpu", "--out", str(tmp_path)]
    with locked(tmp_path):
        assert main(["generate", "a ball", *options]) == 1
    assert capsys.readouterr().err == (
        f"rmd: another process is writing to {tmp_path}: wait until it has finished, or choose another folder\n"
    )
    assert main(["generate", "a ball", *options]) == 0


def test_a_new_folder_that_remains_empty_is_removed(tmp_path: Path) -> None:
    album = plan_album(["a"], tmp_path / "new" / "out", count=1, seed=0)
    with pytest.raises(ZeroDivisionError), writing(album):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with writing(album):
        (album.place / "picture").touch()
    assert sorted(path.name for path in album.place.iterdir()) == [".rmd.lock", "picture"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZeroDivisionError), writing(plan_album(["a"], tmp_path / "empty", count=1, seed=0)):
        raise ZeroDivisionError
    assert (tmp_path / "empty").is_dir()


def test_an_album_computes_its_pictures_on_access(tmp_path: Path) -> None:
    album = plan_album(["a", "b"], tmp_path, count=500_000, seed=2**64 - 10**6)
    assert isinstance(album, Album) and len(album) == 10**6
    assert album[-1].seed == 2**64 - 1 and album[-1].path.name == "00001-499999-b.png"
    assert [picture.seed - album.seed for picture in album[499_999:500_002]] == [499_999, 500_000, 500_001]
    with pytest.raises(IndexError):
        album[10**6]


@pytest.mark.parametrize(
    ("prompts", "changes", "sentence"),
    [
        (["a"], {"count": 10**9}, r"^an album has 1 to 1000000 pictures, not 1000000000$"),
        (["a"], {"count": 0}, r"^an album has 1 to 1000000 pictures, not 0$"),
        (["a"], {"seed": -1}, rf"^seeds are numbers from 0 to {2**64 - 1}, got -1$"),
        (["a"], {"seed": 2**64}, r"^seeds are numbers from 0 to "),
        (["a", "b"], {"seed": 2**64 - 1}, rf", got {2**64 - 1} to {2**64}$"),
        (["a"], {"seed": 10**100}, r", got a number of 333 bits$"),
        (["a", "b\ud83d"], {}, r"cannot be used: the caption contains half of a character"),
        (["a\0"], {}, r"cannot be used: the caption contains the control character U.0000"),
        (["a" * 10**6], {}, r"cannot be used: the caption has 1000000 characters, but at most 100000"),
    ],
)
def test_impossible_albums_are_refused(
    prompts: list[str], changes: dict[str, int], sentence: str, tmp_path: Path
) -> None:
    arguments = {"count": 1, "seed": 0, **changes}
    with pytest.raises(RMDError, match=sentence):
        plan_album(prompts, tmp_path, **arguments)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"\(rmd\) is not valid JSON: "),
        ("[1]", r"\(rmd\): should be a group of keys, but is \[1\]$"),
        ('{"prompt": 3}', r"\(rmd\): version is missing \(and 3 more\)$"),
        ('{"version": "1", "model": "m", "prompt": "a", "seed": 0, "run": 1}', r"\(rmd\): there is no key run"),
        (
            '{"version": "1", "model": "m", "prompt": "a", "seed": -1}',
            r"\(rmd\): seed should be at least 0, but",
        ),
    ],
)
def test_settings_are_read_strictly(text: str, sentence: str, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(KEY, text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    (tmp_path / "a.mp4.json").write_text(text)
    for name in ("a.png", "a.mp4"):
        with pytest.raises(RMDError, match=sentence.replace(r"\(rmd\)", "" if name == "a.mp4" else r" \(rmd\)")):
            read_settings(tmp_path / name)


def test_settings_are_read_as_they_were_written(pipe: RMDPipeline, moving: Path, tmp_path: Path) -> None:
    clips = RMDPipeline.from_pretrained(moving)
    for sampler in (
        StudentSampler(pipe),
        StudentSampler(clips),
        PipelineSampler(tiny_sdxl().pipe, "x", steps=2, guidance=3, width=24),
        PipelineSampler(TINY["wan"]().pipe, "y", frames=5),
    ):
        settings = {**sampler.settings, "prompt": "a", "seed": 2**64 - 1}
        path = tmp_path / "settings.mp4"
        path.with_name("settings.mp4.json").write_text(json.dumps(settings))
        assert read_settings(path) == settings


def test_a_folder_with_the_name_of_a_picture_is_kept(pipe: RMDPipeline, tmp_path: Path) -> None:
    (picture,) = plan_album(["a"], tmp_path, count=1, seed=0)
    (picture.beside("stage1").path / "thesis").mkdir(parents=True)
    with pytest.raises(RMDError, match=r"-stage1\.png is a folder: remove it, or choose another --out$"):
        make_album(StudentSampler(pipe, stages=True), [picture])
    assert (picture.beside("stage1").path / "thesis").is_dir()


class Hungry:
    """A sampler whose batch exceeds any memory."""

    moving, stage_count = False, 0
    settings: Mapping[str, Any] = {"version": "1", "model": "hungry"}

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Sample]:
        torch.empty(len(prompts) * 10**14)
        raise AssertionError


def test_a_batch_that_exceeds_the_memory_is_refused(tmp_path: Path) -> None:
    pictures = plan_album(PROMPTS, tmp_path, count=1, seed=0)
    with pytest.raises(RMDError, match=r"^there is not enough memory for a batch of 4: use a smaller batch"):
        make_album(Hungry(), pictures)
