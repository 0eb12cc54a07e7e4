"""`rmd eval videos`: clips of `rmd generate` and of other programs are scored, and results compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rmd.cli.app import main
from rmd.common.clips import save_clip
from rmd.scores.result import read_result
from rmd.scores.video import VIDEO_METRICS

Captured = pytest.CaptureFixture[str]
PIXELS = "vbench-lite-temporal-flickering,vbench-lite-dynamic-degree"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def album(folder: str, step: int) -> None:
    Path(folder).mkdir()
    for number in range(3):
        frames = [Image.new("RGB", (16, 16), (10 + number + step * k,) * 3) for k in range(4)]
        save_clip(frames, Path(folder) / f"{number}.gif", fps=8)


def test_clips_are_scored_and_compared(capsys: Captured) -> None:
    album("one", 10)
    album("two", 20)
    Path("p.txt").write_text("a\nb\nc\n", encoding="utf-8")
    for name in ("one", "two"):
        assert main(["eval", "videos", name, "--metrics", PIXELS, "--prompts", "p.txt"]) == 0
    out = capsys.readouterr().out
    assert "two, 3 prompts (p.txt), 16 x 16 GIF" in out and "clips" in out
    assert "VBench-lite: dynamic degree" in out and f"result: {Path('runs/scores/two')}" in out
    result, table = read_result(Path("runs/scores/two"))
    assert result.protocol.frames == 4 and table.file == ["0.gif", "1.gif", "2.gif"]
    assert main(["eval", "compare", "runs/scores/two", "runs/scores/one"]) == 0
    assert "first model's clips score higher" in " ".join(capsys.readouterr().out.split())


def test_clips_of_generate_say_how_they_were_made(capsys: Captured) -> None:
    album("one", 10)
    for number in range(3):
        settings = {"version": "0", "model": "m", "prompt": f"p{number % 2}", "seed": number, "steps": 4, "fps": 8}
        Path(f"one/{number}.gif.json").write_text(json.dumps(settings), encoding="utf-8")
    assert main(["eval", "videos", "one", "--metrics", PIXELS, "--allow-missing"]) == 0
    result, table = read_result(Path("runs/scores/one"))
    assert result.making.settings == {"model": "m", "steps": 4, "fps": 8} and result.making.nfe == "4"
    assert result.protocol.prompts.name == "the clips' own" and table.prompt.tolist() == [0, 0, 1]
    assert "1" in capsys.readouterr().out


def test_errors_are_one_sentence(capsys: Captured) -> None:
    album("one", 10)
    Path("p.txt").write_text("a\nb\nc\n", encoding="utf-8")
    for arguments, sentence in (
        (["nothing"], "there are no samples (.mp4, .webp, .gif) in nothing: "),
        (["one"], "these clips do not say what their prompts are: "),
        (["one", "--metrics", "hps"], "unknown metric 'hps': use one of vbench-lite-subject-consistency, "),
        (
            ["one", "--prompts", "p.txt", "--weights", "w"],
            f"{Path('w/facebook/dinov2-large/config.json')} is missing: ",
        ),
    ):
        assert main(["eval", "videos", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"rmd: {sentence}") and error.count("\n") == 1


def test_the_help_names_every_metric(capsys: Captured) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "500")
        assert main(["eval", "videos", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in VIDEO_METRICS)
