"""Plans of videos: their files are checked when they are read, and `rmd generate` makes what they name, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import make_student
from helpers import PROMPTS

from rmd.cli.app import main
from rmd.common.clips import clip_shape
from rmd.common.errors import RMDError
from rmd.common.files import LOCK, locked
from rmd.data.prompt_set import PromptSet
from rmd.sample.album import plan_album, planned_album, read_settings, share, writing
from rmd.sample.plans import PlannedVideo, VideoPlan, read_plan, write_plan

Captured = pytest.CaptureFixture[str]


def plan_of(*paths: str, seeds: tuple[int, ...] = (), prompt: str = PROMPTS[0]) -> VideoPlan:
    """Return a plan of these files, whose seeds are 5, 6, ... by default."""
    given = seeds or range(5, 5 + len(paths))
    videos = tuple(PlannedVideo(path=p, prompt=prompt, seed=s) for p, s in zip(paths, given, strict=True))
    return VideoPlan(
        benchmark="vbench", layout="x", prompts=PromptSet.of([prompt], "mine"), sources={}, videos=videos
    )  # fmt: skip


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of("a/x-0.mp4", "a/x-1.mp4", "b/y-0.mp4")
    write_plan(plan, tmp_path / "new" / "plan.json")
    assert read_plan(tmp_path / "new" / "plan.json") == plan
    assert plan.folders() == ("a", "b") and [v.seed for v in plan.below(["b"]).videos] == [7]
    with pytest.raises(RMDError, match=r"^the plan has no videos of c: it has those of a, b$"):
        plan.below(["c"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": "../x.mp4"}, "'../x.mp4' cannot be the path of a video: it should be that of a file in a folder"),
        ({"path": "/etc/x.mp4"}, "'/etc/x.mp4' cannot be the path of a video: it should be that of a file in a folder"),
        ({"path": "x.mp4"}, "'x.mp4' cannot be the path of a video: it should be that of a file in a folder"),
        ({"path": "a/.x.mp4"}, "'a/.x.mp4' cannot be the path of a video: it should be that of a file in a folder"),
        ({"path": "a/x.gif"}, "'a/x.gif' cannot be the path of a video: it should end in .mp4"),
        ({"path": "a/x\0.mp4"}, "the path of a video contains a NUL character"),
        ({"path": "a/y.mp4"}, "2 videos have the path 'a/y.mp4': make the plan again"),
        ({"seed": 6}, "2 videos have the seed 6: make the plan again"),
        ({"seed": -1}, "videos[0].seed should be at least 0, but is -1"),
        ({"prompt": ""}, "videos[0].prompt should be text that is not empty"),
        ({"extra": 1}, "there is no key videos[0].extra"),
    ],
)
def test_what_no_plan_says(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    content = json.loads(plan_of("a/x.mp4", "a/y.mp4").model_dump_json())
    content["videos"][0] |= change
    (tmp_path / "plan.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RMDError) as caught:
        read_plan(tmp_path / "plan.json")
    assert sentence in str(caught.value) and str(caught.value).startswith(str(tmp_path / "plan.json"))


def test_the_album_of_a_plan(tmp_path: Path) -> None:
    album = planned_album(plan_of("a/x-0.mp4", "b/y-0.mp4", seeds=(9, 3)), tmp_path)
    assert len(album) == 2 and [picture.seed for picture in album] == [9, 3]
    assert album[1].path == tmp_path / "b" / "y-0.mp4" and album[1].prompt == PROMPTS[0]
    with pytest.raises(RMDError, match=r"^the prompt 'a\\x07' cannot be used: "):
        planned_album(plan_of("a/x.mp4", prompt="a\7"), tmp_path)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_workers_share_whole_batches(workers: int, tmp_path: Path) -> None:
    album = plan_album(PROMPTS, tmp_path, count=3, seed=0)
    batches = [[picture.seed for picture in album[start : start + 3]] for start in range(0, len(album), 3)]
    found = []
    for number in range(workers):
        pictures = share(album, (number, workers), 3)
        found += [[picture.seed for picture in pictures[start : start + 3]] for start in range(0, len(pictures), 3)]
    assert sorted(found) == batches
    with pytest.raises(RMDError, match=r"^nothing is left for worker 4/5: there are only 4 batches$"):
        share(album, (4, 5), 3)


def test_workers_of_one_number_write_together(tmp_path: Path) -> None:
    album = plan_album(PROMPTS, tmp_path / "out", count=1, seed=0)
    with writing(album, (0, 2)):
        with writing(album, (1, 2)):
            pass
        for other in ((0, 2), (1, 3), (0, 1)):
            with pytest.raises(RMDError, match=r"^another process is writing to "), writing(album, other):
                pass
    refused = pytest.raises(RMDError, match=r"^another process is writing to ")
    with locked(album.place, LOCK), refused, writing(album, (0, 2)):
        pass
    with writing(album):
        pass


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("clips"), "wan", "lora")


def test_generate_makes_the_videos_of_a_plan_once(moving: Path, tmp_path: Path, capsys: Captured) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    names = ["a/A red ball, still.-0.mp4", "a/A red ball, still.-1.mp4", "b/0001.mp4"]
    write_plan(plan_of(*names), plan)
    command = ["generate", "--model", str(moving), "--plan", str(plan), "--out", str(out), "--device", "cpu",
               "--batch-size", "2", "--fps", "8"]  # fmt: skip
    assert main([*command, "--worker", "1/2"]) == 0
    assert capsys.readouterr().out == f"1 clip in {out}\n" and [p.name for p in out.rglob("*.mp4")] == ["0001.mp4"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"2 clips in {out} (1 existed already)\n"
    assert main(command) == 0
    assert capsys.readouterr().out == f"0 clips in {out} (3 existed already)\n"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.mp4")) == names
    settings = read_settings(out / names[1])
    assert settings is not None and (settings["prompt"], settings["seed"], settings["fps"]) == (PROMPTS[0], 6, 8)
    assert clip_shape(out / names[0]).fps == 8
    write_plan(plan_of(*names, seeds=(1, 2, 3)), plan)
    assert main(command) == 1
    assert capsys.readouterr().err.endswith("still.-0.mp4 is another picture: remove it, or choose another --out\n")


def test_processes_of_torchrun_have_a_share_each(
    moving: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    write_plan(plan_of("a/x.mp4", "a/y.mp4"), tmp_path / "plan.json")
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    command = ["generate", "--model", str(moving), "--plan", str(tmp_path / "plan.json"), "--device", "cpu"]
    command += ["--batch-size", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert [path.name for path in (tmp_path / "out").rglob("*.mp4")] == ["y.mp4"]
    assert main([*command, "--worker", "0/2"]) == 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    capsys.readouterr()
    assert main(command) == 1  # an error of this process alone, which prints it
    assert capsys.readouterr().err == "rmd: nothing is left for worker 2/3: there are only 2 batches\n"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["a ball"], "--plan names the prompts, seeds and files, and nothing else is made: leave out PROMPT"),
        (["--seed", "3"], "and nothing else is made: leave out --seed"),
        (["-n", "3"], "and nothing else is made: leave out --count"),
        (["--compare-teacher"], "and nothing else is made: leave out --compare-teacher"),
        (["--worker", "2/2"], "--worker should be I/N with I from 0 to N - 1, but is '2/2'"),
        (["--worker", "1/2"], "nothing is left for worker 1/2: there are only 1 batches"),
        (["--plan", "nothing.json"], "there is no file nothing.json"),
    ],
)
def test_a_plan_leaves_nothing_to_say(
    more: list[str], sentence: str, moving: Path, tmp_path: Path, capsys: Captured
) -> None:
    write_plan(plan_of("a/x.mp4"), tmp_path / "plan.json")
    out = tmp_path / "out"
    command = ["generate", "--model", str(moving), "--plan", str(tmp_path / "plan.json"), "--out", str(out)]
    assert main([*command, "--device", "cpu", *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rmd: ") and error.count("\n") == 1 and sentence in error and not out.exists()


def test_pictures_have_no_plan(tmp_path: Path, capsys: Captured) -> None:
    still = make_student(tmp_path, "sdxl", "lora")
    write_plan(plan_of("a/x.mp4"), tmp_path / "plan.json")
    command = ["generate", "--model", str(still), "--plan", str(tmp_path / "plan.json"), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert "a plan is for clips, but " in capsys.readouterr().err
