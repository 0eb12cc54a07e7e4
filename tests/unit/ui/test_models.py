"""The models of the page: names, sizes, and where the teacher is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rmd.common.errors import RMDError
from rmd.ui.models import Models, Size, short_names

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ([], []),
        (["runs/demo/student"], ["demo/student"]),
        (["owner/name"], ["name"]),
        (["a/student", "b/student"], ["a/student", "b/student"]),
        (["x/a/student", "y/a/student", "z"], ["x/a/student", "y/a/student", "z"]),
    ],
)
def test_names_are_short_and_tell_students_apart(sources: list[str], names: list[str]) -> None:
    assert short_names(sources) == names


def test_a_student_given_twice_is_refused() -> None:
    with pytest.raises(RMDError, match=r"a student is given twice: a/b, a/b; leave one of them out"):
        short_names(["a/b", "a/b"])


def test_students_and_their_teacher(models: Models, students: dict[str, Path]) -> None:
    assert models.systems == ("full/student", "lora/student", "teacher teacher")
    assert models.first is not None and models.first.source == str(students["full"])
    assert not models.moving("full/student") and models.final("lora/student").height == 32
    student = models.student("full/student", Size(48, 32))
    assert (student.height, student.width) == (48, 32)
    assert models.student("full/student").pipe is student.pipe
    teacher = models.beside(student, steps=3)
    assert (teacher.height, teacher.width, teacher.steps) == (48, 32, 3)
    assert teacher.guidance == student.pipe.student.guidance
    assert models.system("teacher teacher", Size(32, 32)).settings["num_inference_steps"] == 25
    with pytest.raises(RMDError, match=r"unknown model 'other': use one of full/student, lora/student, teacher"):
        models.system("other")


def test_a_student_without_a_known_teacher_can_be_tried_alone(students: dict[str, Path], tmp_path: Path) -> None:
    alone = Path(shutil.copytree(students["full"], tmp_path / "alone"))
    config = json.loads((alone / "rmd_config.json").read_text(encoding="utf-8"))
    for teacher, reason in ((None, "names no teacher"), (str(tmp_path / "gone"), "there is no folder")):
        (alone / "rmd_config.json").write_text(json.dumps(config | {"teacher": teacher}), encoding="utf-8")
        models = Models([str(alone)], device=CPU)
        assert models.teacher is None and reason in models.missing and models.systems == ("alone",)
        with pytest.raises(RMDError, match=reason):
            models.beside(models.student("alone"))
    given = Models([str(alone)], teacher=str(students["full"].parent / "teacher"), device=CPU)
    assert given.teacher == "teacher teacher"
    with pytest.raises(RMDError, match=r"there is no folder .*nowhere: give the folder of the teacher"):
        Models([str(alone)], teacher=str(tmp_path / "nowhere"), device=CPU)


def test_captions_come_from_the_world_of_a_packaged_teacher(students: dict[str, Path], tmp_path: Path) -> None:
    assert Models([str(students["full"])], device=CPU).captions(3) == []
    packaged = Path(shutil.copytree(students["full"], tmp_path / "packaged"))
    config = json.loads((packaged / "rmd_config.json").read_text(encoding="utf-8"))
    (packaged / "rmd_config.json").write_text(json.dumps(config | {"teacher": "scenes"}), encoding="utf-8")
    models = Models([str(packaged)], device=CPU)
    assert models.teacher == "teacher scenes" and len(set(models.captions(5))) == 5
    assert Models([], device=CPU).systems == () and Models([], device=CPU).captions(2) == []
