"""Watching a run: what is said of it before it starts, while it goes on, and after it has ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_recipe
from PIL import Image

from rmd.common.errors import RMDError
from rmd.common.files import LOCK
from rmd.recipes.schema import to_yaml
from rmd.train.checkpoint import META
from rmd.train.marks import MarkBook, Marks
from rmd.ui.fragments import drawn_curves, pictures_html, run_html
from rmd.ui.shelf import Shelf
from rmd.ui.watching import RunWatch, find_pictures, thinned


def write_run(folder: Path, *, done: int, total: int = 10) -> None:
    """Write what a run of a tiny recipe leaves in its folder after some iterations."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = make_recipe("prompts.txt", train={"iterations": total})
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    records = [
        {"iteration": i, "step": 1.0 + i % 4, "stage": 1.0 + i % 2, "student_loss": 2.0 / i, "fake_loss": 0.1,
         "student_grad_norm": 1.0, "fake_grad_norm": 1.0, "gap": 0.5, "seconds": 2.0 if i > 1 else 90.0}
        for i in range(1, done + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")


def write_picture(folder: Path, name: str, colour: str) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(folder / "pictures" / name)


def write_checkpoint(folder: Path, name: str) -> None:
    (folder / "checkpoints" / name).mkdir(parents=True)
    (folder / "checkpoints" / name / META).write_text("{}", encoding="utf-8")


HOLD = (
    "import sys; from pathlib import Path; from rmd.common.files import locked; "
    "held = locked(Path(sys.argv[1])); held.__enter__(); print('held', flush=True); sys.stdin.read()"
)
"""A program that holds the lock of a folder, as a run does, until its standard input is closed."""


def test_a_run_goes_on_and_then_stops(tmp_path: Path) -> None:
    write_run(tmp_path, done=4)
    write_checkpoint(tmp_path, "step-000003")
    watch = RunWatch(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        view = watch.view()
        assert (view.state, view.done, view.total, view.seconds, view.left) == ("running", 4, 10, 2.0, 12.0)
        assert view.checkpoint is not None and view.checkpoint[0] == 3 and view.checkpoint[1] < 600
        html = run_html(view, [], Shelf())
        assert "The run goes on." in html and "about 12 s" in html and 'max="10" value="4"' in html
        write_run(tmp_path, done=6)
        assert watch.view().done == 6
    view = watch.view()
    assert (view.state, view.left) == ("stopped", None)
    assert "can be continued with --resume" in run_html(view, [], Shelf())
    write_run(tmp_path, done=10)
    assert watch.view().state == "finished"


def test_a_run_that_has_not_begun_yet(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    view = RunWatch(tmp_path).view()
    assert (view.name, view.state, view.done, view.total, view.checkpoint) == (tmp_path.name, "stopped", 0, None, None)
    shelf = Shelf()
    assert "none yet" in run_html(view, drawn_curves(view.history, shelf), shelf)
    assert "There are no pictures yet" in pictures_html(view, shelf, None)


def test_pictures_come_by_iteration_and_kind(tmp_path: Path) -> None:
    write_run(tmp_path, done=8)
    for name, colour in (
        ("samples-000004.png", "red"), ("scores-000004.png", "blue"), ("samples-000008.png", "green"),
        (".samples-000012.png.partial", "white"), ("other.png", "white"),
    ):  # fmt: skip
        path = name if name.endswith(".png") else "x.png"
        write_picture(tmp_path, path, colour)
    view, shelf = RunWatch(tmp_path).view(), Shelf()
    assert {iteration: list(kinds) for iteration, kinds in view.pictures.items()} == {
        4: ["samples", "scores"], 8: ["samples"],
    }  # fmt: skip
    newest = pictures_html(view, shelf, None)
    assert "Pictures of iteration 8" in newest and newest.count("<img") == 1
    earlier = pictures_html(view, shelf, 4)
    assert "Pictures of iteration 4" in earlier and earlier.count("<img") == 2 and "difference x4" in earlier
    assert pictures_html(view, shelf, 5) == newest  # it was pruned, or has never been
    assert find_pictures(tmp_path / "none") == {}


def test_curves_are_drawn_for_both_kinds_of_screens(tmp_path: Path) -> None:
    write_run(tmp_path, done=8)
    shelf = Shelf()
    drawn = drawn_curves(RunWatch(tmp_path).view().history, shelf)
    assert [each["title"] for each in drawn] == ["Loss", "Gradient norm", "Gap between the scores"]
    for each in drawn:
        for theme in ("light", "dark"):
            found = shelf.get(each[theme].rpartition("/")[2])
            assert found is not None and b"<svg" in found[0] and found[1] == "image/svg+xml"


def test_long_histories_are_thinned_evenly_within_every_stage() -> None:
    history = [{"iteration": float(i), "stage": 1.0 + i % 2} for i in range(1, 5001)]
    thin = thinned(history, most=100)
    assert thin == sorted(thin, key=lambda record: record["iteration"]) and len(thin) == 200
    assert {record["stage"] for record in thin} == {1.0, 2.0}
    assert thinned(history[:50]) == history[:50]


def test_what_should_be_looked_at_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, done=8)
    book = MarkBook(tmp_path, start=0)
    for iteration in (2, 4, 6, 8):
        book.add(iteration, Marks({"judge": 0.5}, {"judge": (0.5, 0.6, 0.4)}))
    (tmp_path / "marks.svg").write_text("<svg/>", encoding="utf-8")
    (tmp_path / "checkpoints" / "collapsed-step-000006").mkdir(parents=True)
    view = RunWatch(tmp_path).view()
    assert view.notes == (
        "no gain in judge beyond noise since iteration 2: stop?",
        "the student collapsed: collapsed-step-000006 and later checkpoints were set aside",
    )
    html = run_html(view, [], Shelf())
    assert html.count('class="smoke"') == 2 and 'alt="marks over the iterations"' in html


def test_only_folders_of_runs_are_watched(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"there is no folder .*none: give the folder of a run"):
        RunWatch(tmp_path / "none")
    with pytest.raises(RMDError, match=r"holds no run: it has no recipe\.yaml"):
        RunWatch(tmp_path)
    write_run(tmp_path, done=2)
    (tmp_path / "metrics.jsonl").write_text("{}\nnonsense\n", encoding="utf-8")
    with pytest.raises(RMDError, match=r"metrics\.jsonl, line 1 has no iteration"):
        RunWatch(tmp_path).view()
