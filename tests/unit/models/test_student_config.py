"""A student's `rmd_config.json` is read strictly, and returns as it was written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.models.student import load_student
from rmd.models.student_config import CONFIG_NAME, read_student, write_config


def edit(folder: Path, keys: Sequence[str | int], value: object) -> None:
    """Set a value in a student's config; `...` deletes the key."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    (folder / CONFIG_NAME).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (["version"], 2, r"rmd_config\.json has version 2, but this RMD reads version 1: update RMD to read it$"),
        (["mode"], "half", r"rmd_config\.json: mode should be 'lora' or 'full', but is 'half'$"),
        (["extra"], 1, "there is no key extra$"),
        (["guidanse"], 1, r"there is no key guidanse \(did you mean 'guidance'\?\)$"),
        (["guidance"], math.nan, "is not valid JSON"),
        (["guidance"], -1.0, "guidance should be at least 0"),
        (["guidance"], "2", "guidance should be a number, but is '2'$"),
        (["teacher"], ..., "teacher is missing$"),
        (["teacher"], "", "teacher should be text that is not empty"),
        (["family"], "sd4", r"unknown model family 'sd4' \(did you mean 'sd'\?\): use one of "),
        (["family"], "sd3", "is of the family sd3, but the pipeline is of sdxl$"),
        (["conditioning", "target"], "last", "conditioning.target should be 'final' or 'stage', but is 'last'$"),
        (["conditioning", "shift"], 1, r"there is no key conditioning\.shift"),
        (
            ["conditioning", "pos_rescale"],
            True,
            "models of the family sdxl do not support conditioning.pos_rescale",
        ),
        (["plan", "frames"], 9, r"rmd_config\.json of .*: sdxl makes single pictures, not 9 frames"),
        (["plan", "stages", 1, "height"], 63, "stage 2 is 63x32, but this model's sides are multiples of 4$"),
        (["plan", "stages", 0, "width"], 15, "stage 1 is 16x15, but this model's sides are multiples of 4$"),
        (["plan", "steps", 1, "model_time"], math.inf, "is not valid JSON"),
        (["plan", "steps", 3, "model_time"], 900.0, "rmd_config.json: model times must fall within a stage"),
        (["plan", "steps", 1, "logsnr"], 20.0, "rmd_config.json: logSNRs must rise as teacher times fall"),
        (["plan", "crossing", "rule"], "blocks", r"plan\.crossing\.rule should be 'plain', 'corrected' or 'block'"),
        (["plan", "steps"], [], "a plan needs at least one step, got none$"),
    ],
)
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_config_is_read_strictly(
    mode: str, keys: list[str | int], value: object, sentence: str, copied: dict[str, Path]
) -> None:
    edit(copied[mode], keys, value)
    with pytest.raises(RMDError, match=sentence) as caught:
        load_student(copied[mode])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_config_comes_back_as_it_was_written(mode: str, saved: dict[str, Path], tmp_path: Path) -> None:
    config = read_student(saved[mode])
    write_config(config, tmp_path)
    assert (tmp_path / CONFIG_NAME).read_bytes() == (saved[mode] / CONFIG_NAME).read_bytes()
    assert config.source == str(saved[mode]) and "source" not in config.values
    assert config.values == json.loads((saved[mode] / CONFIG_NAME).read_text())


def test_a_config_of_the_other_mode_is_refused(copied: dict[str, Path]) -> None:
    edit(copied["full"], ["mode"], "lora")
    with pytest.raises(RMDError, match=r"^the rmd_config\.json of .* describes a lora student, but there is no pyt"):
        load_student(copied["full"])
    edit(copied["lora"], ["mode"], "full")
    with pytest.raises(RMDError, match=r"describes a full student, but there is no model_index\.json$"):
        load_student(copied["lora"])


def test_a_student_without_a_teachers_name_asks_for_it(copied: dict[str, Path], saved: dict[str, Path]) -> None:
    edit(copied["lora"], ["teacher"], None)
    with pytest.raises(RMDError, match=r"names no teacher, as it was made for sharing: give its base by "):
        load_student(copied["lora"])
    assert load_student(copied["lora"], teacher=saved["lora"].parent / "teacher").config.teacher is None
