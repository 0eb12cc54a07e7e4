"""VBench in processes of its own: what it is given, what is kept of it, and continuing where it stopped.

A package that takes VBench's arguments and writes what VBench writes stands in its place (`benchmarks.py`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import fake_vbench, write_info, write_videos

from rmd.common.errors import RMDError
from rmd.sample.plans import VideoPlan, write_plan
from rmd.scores.upstream import Calls
from rmd.scores.vbench import read_scores
from rmd.scores.vbench_plan import plan_vbench
from rmd.scores.vbench_run import STATIC, run_vbench, static_counts

SIZES = {"temporal_flickering": 2, "subject_consistency": 1, "color": 2}


class Home:
    """A list, a plan and its videos, and the stand-in for VBench."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.info = folder, write_info(folder, SIZES)
        self.plan: VideoPlan = plan_vbench(self.info)
        write_plan(self.plan, folder / "plan.json")
        write_videos(self.plan, folder / "videos", settings=True)
        for name, value in fake_vbench(folder / "package").items():
            monkeypatch.setenv(name, value)
        self.out = folder / "out"

    def run(self, *dimensions: str, timeout: float | None = None) -> list[Path]:
        return run_vbench(
            self.folder / "plan.json", self.plan, self.info, self.folder / "videos", Path(sys.executable),
            Calls(self.out, timeout), dimensions=dimensions,
        )  # fmt: skip

    def behave(self, code: str) -> None:
        (self.folder / "package" / "behaviour.py").write_text(code, encoding="utf-8")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, monkeypatch)


def test_every_dimension_of_the_plan(home: Home) -> None:
    files = home.run()
    names = ["subject_consistency", "motion_smoothness", "dynamic_degree", "color", "temporal_flickering"]
    assert [file.name for file in files] == [f"{name}_eval_results.json" for name in names]
    assert read_scores(files) == dict.fromkeys(names, 1.0)  # all videos were found under the names of VBench
    logs = sorted(path.name for path in (home.out / "logs").iterdir())
    assert len(logs) == 6 and "temporal_flickering-filter.log" in logs
    assert not (home.out / "work").exists()
    color = json.loads((home.out / "color_eval_results.json").read_text(encoding="utf-8"))["color"]
    assert [each["video_path"] for each in color[1]][:2] == ["color, number 0-0.mp4", "color, number 0-1.mp4"]


def test_flickering_is_measured_on_videos_that_stand_still(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILL", "3")
    (file,) = home.run("temporal_flickering")
    assert read_scores([file]) == {"temporal_flickering": 0.6}
    counts = static_counts(home.out / STATIC, home.plan)
    assert counts == {"temporal flickering, number 0": 3, "temporal flickering, number 1": 3}
    monkeypatch.setenv("STILL", "0")
    file.unlink()
    with pytest.raises(RMDError, match=r"^VBench's filter finds no video of temporal_flickering that stands still, "):
        home.run("temporal_flickering")
    record = json.loads((home.out / STATIC).read_text(encoding="utf-8"))
    del record["temporal flickering, number 1"]
    (home.out / STATIC).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(
        RMDError, match=r"does not know the prompt 'temporal flickering, number 1': install the VBench "
    ):
        static_counts(home.out / STATIC, home.plan)


def test_a_failure_leaves_what_is_done_and_the_same_command_continues(home: Home) -> None:
    home.behave("if dimension == 'dynamic_degree': raise RuntimeError('out of memory')")
    with pytest.raises(RMDError) as caught:
        home.run()
    assert str(caught.value) == (
        f"dynamic_degree failed with status 1 (log: {home.out / 'logs' / 'dynamic_degree.log'}): RuntimeError: out of "
        "memory"
    )
    done = sorted(path.name for path in home.out.glob("*_eval_results.json"))
    assert done == ["motion_smoothness_eval_results.json", "subject_consistency_eval_results.json"]
    home.behave("assert dimension not in ('subject_consistency', 'motion_smoothness')")
    assert len(home.run()) == 5 and len(list(home.out.glob("*_eval_results.json"))) == 5


def test_a_process_that_hangs(home: Home) -> None:
    home.behave("import time; print('waiting for a GPU'); time.sleep(60)")
    with pytest.raises(RMDError, match=r"^color took longer than 2 seconds and was ended .*: waiting for a GPU$"):
        home.run("color", timeout=2)
    assert not list(home.out.glob("*_eval_results.json")) and not (home.out / "work").exists()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise SystemExit(0)", r"^VBench ended without a result of color: its log is .*color\.log$"),
        (
            "dimension = 'scene'",
            r"^color failed with status 1 \(log: .*\): ZeroDivisionError: division by zero$",
        ),
        (
            "print_result = json.dumps; json.dumps = lambda value: print_result({dimension: [float('nan'), []]})",
            r"has no score of color between 0 and 1, but \{'color': nan\}: remove it$",
        ),
    ],
)
def test_what_is_no_result(code: str, sentence: str, home: Home) -> None:
    home.behave(code)
    with pytest.raises(RMDError, match=sentence):
        home.run("color")
    assert not list(home.out.glob("*_eval_results.json"))


def test_results_that_were_changed_are_refused(home: Home) -> None:
    (file,) = home.run("color")
    file.write_text('{"color": [7, []]}', encoding="utf-8")
    with pytest.raises(RMDError, match=r"color_eval_results\.json has no score of color between 0 and 1, but "):
        home.run("color")


def test_what_is_checked_before_anything_runs(home: Home) -> None:
    home.behave("raise RuntimeError('never reached')")
    with pytest.raises(
        RMDError, match=r"^unknown dimension 'colour' \(did you mean 'color'\?\): use one of subject_co"
    ):
        home.run("colour")
    with pytest.raises(RMDError, match=r"^the plan has no videos of scene: "):
        home.run("background_consistency")
    first = home.folder / "videos" / "color" / "color, number 0-0.mp4"
    first.rename(home.folder / "elsewhere")
    with pytest.raises(RMDError, match=r"^1 of the plan's 10 videos are missing in "):
        home.run("color")
    (home.folder / "elsewhere").rename(first)
    home.info.write_text(home.info.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(
        RMDError, match=r"^the plan was not made from .*json: give the file that .*plan\.json was made "
    ):
        home.run("color")
    home.plan = home.plan.model_copy(update={"benchmark": "compbench"})
    with pytest.raises(
        RMDError, match=r"plan\.json is a plan of another benchmark: make one with `rmd eval vbench plan`"
    ):
        home.run("color")
    assert not home.out.exists()


def test_videos_that_were_exchanged_need_another_folder(home: Home) -> None:
    home.run("color")
    home.run("subject_consistency")
    (home.folder / "videos" / "color" / "color, number 0-0.mp4").write_bytes(b"another one")
    home.run("subject_consistency")
    with pytest.raises(
        RMDError, match=r"out has results of other videos of color: choose another --out, or remove it$"
    ):
        home.run("color")
