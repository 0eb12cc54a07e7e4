"""The records of a run, the place at which a resumed run continues, and trackers of other packages."""

from __future__ import annotations

import errno
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import LinearBackbone, make_recipe, write_prompts
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rmd.common.errors import RMDError
from rmd.common.plugins import Registry
from rmd.train import callbacks, tracking
from rmd.train.loop import Trainer
from rmd.train.tracking import (
    TRACKERS,
    LocalFiles,
    Tracker,
    Trackio,
    Wandb,
    check_trackers,
    peak_memory_gb,
    read_metrics,
)


def opened(folder: Path, *, start: int) -> closing[LocalFiles]:
    """Return a block in which the files of a run are open."""
    return closing(LocalFiles(folder, start=start))


def iterations(folder: Path) -> list[float]:
    return [row["iteration"] for row in read_metrics(folder / "metrics.jsonl")]


def write(folder: Path, *numbers: int, start: int = 0) -> None:
    with opened(folder, start=start) as tracker:
        for number in numbers:
            tracker.log_metrics(number, {"loss": number / 2})


def test_a_record_is_a_line_of_json(tmp_path: Path) -> None:
    with opened(tmp_path / "run", start=0) as tracker:
        tracker.log_metrics(1, {"loss": 0.1, "norm": float("inf"), "gap": float("nan")})
        # on disk at once: a killed run keeps it
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"iteration": 1, "loss": 0.1, "norm": None, "gap": None}]


def test_the_memory_of_a_process_is_measured() -> None:
    assert 0.05 < peak_memory_gb(torch.device("cpu")) < 64


def test_the_gap_of_every_step_has_a_curve_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path, start=0) as tracker:
        for iteration, step in enumerate((1, 3, 1), start=1):
            tracker.log_metrics(iteration, {"step": float(step), "gap": iteration / 10})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("gap/step-1")] == [1, 3]
    assert [event.step for event in events.Scalars("gap/step-3")] == [2]


def test_a_resumed_run_keeps_what_is_done_and_drops_what_it_will_do_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, 5)
    write(tmp_path, 4, 5, 6, start=3)
    assert iterations(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    write(tmp_path, 1)
    assert iterations(tmp_path) == [1]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "lo')
    assert iterations(tmp_path) == [1, 2]
    write(tmp_path, 3, start=2)
    assert iterations(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"iteration": 2, "lo', "is not a record of metrics: remove that line"),
        ('{"iteration": 2, "loss": NaN}', "is not a record of metrics"),
        ('{"iteration": 2, "loss": "0.5"}', "is not a record of metrics"),
        ("[2, 0.5]", "is not a record of metrics"),
        ('{"loss": 0.5}', "has no iteration: remove that line"),
        ("\ud83d".encode("utf-8", "surrogatepass"), "is not a record of metrics"),
    ],
)
def test_a_line_that_is_no_record_is_told_and_nothing_after_it_is_lost(
    line: str | bytes, sentence: str, tmp_path: Path
) -> None:
    write(tmp_path, 1)
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes() + (line if isinstance(line, bytes) else line.encode()) + b'\n{"iteration": 3}\n'
    path.write_bytes(content)
    with pytest.raises(RMDError, match=f"^{path}, line 2 {sentence}"):
        LocalFiles(tmp_path, start=3)
    assert path.read_bytes() == content


def test_numbers_that_were_not_finite_and_whole_numbers_survive_a_resume(tmp_path: Path) -> None:
    with opened(tmp_path, start=0) as tracker:
        tracker.log_metrics(1, {"loss": float("nan")})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    write(tmp_path, start=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before == b'{"iteration": 1, "loss": null}\n'


FULL = r"^cannot write to .*: the disk is full; its checkpoints are intact; .* run again with --resume$"


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    with opened(tmp_path, start=0) as tracker:
        tracker.log_metrics(1, {"loss": 0.5})
        tracker.path.unlink()
        tracker.path.symlink_to("/dev/full")
        with pytest.raises(RMDError, match=FULL):
            tracker.log_metrics(2, {"loss": 0.5})


def test_a_disk_that_is_full_for_a_picture_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(image: Image.Image, path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill)
    with opened(tmp_path, start=0) as tracker, pytest.raises(RMDError, match=FULL):
        tracker.log_picture("samples", 1, Image.new("RGB", (4, 4)))
    assert list((tmp_path / "pictures").iterdir()) == []


def test_no_file_means_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_tensorboard_shows_every_iteration_of_a_resumed_run_once(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4)
    write(tmp_path, 4, 5, start=3)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(i, i / 2) for i in range(1, 6)]


def test_a_picture_is_saved_and_shown(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with opened(tmp_path, start=0) as tracker:
        tracker.log_picture("samples", 12, Image.fromarray(pixels))
    path = tmp_path / "pictures" / "samples-000012.png"
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [12]


def test_a_tracker_of_another_package_receives_what_the_files_receive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []

    class Recorder(Tracker):
        def __init__(self, folder: Path, *, start: int, config: Any) -> None:
            told.append(("open", folder.name, start, config["name"]))

        def log_metrics(self, iteration: int, values: Any) -> None:
            told.append(("metrics", iteration, values["student_loss"]))

        def log_picture(self, name: str, iteration: int, image: Image.Image) -> None:
            told.append(("picture", iteration, name))

        def close(self) -> None:
            told.append(("close",))

    # A registry whose own entries include it stands for an installed package with an entry point.
    mine: Registry[type[Tracker]] = Registry("rmd.trackers", "tracker", {})
    mine.register("trackio", Recorder)
    for module in (callbacks, tracking):
        monkeypatch.setattr(module, "TRACKERS", mine)
    recipe = make_recipe(write_prompts(tmp_path), train={"iterations": 2, "loggers": ["trackio"]})
    backbone = LinearBackbone(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    Trainer(recipe, backbone, tmp_path / "run").train()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [("metrics", row["iteration"], row["student_loss"]) for row in rows]
    pictures = [("picture", 2, "samples"), ("picture", 2, "scores")]
    assert told == [("open", "run", 0, "tiny"), losses[0], *pictures, losses[1], ("close",)]


def test_the_trackers_by_name() -> None:
    assert TRACKERS.names()[:2] == ("wandb", "trackio")
    assert TRACKERS.get("wandb") is Wandb and TRACKERS.get("trackio") is Trackio
    with pytest.raises(RMDError, match=r"^unknown tracker 'wandbb' \(did you mean 'wandb'\?\): use one of wandb"):
        check_trackers(["wandbb"])
