"""The data of a report: what it accepts, and what it refuses with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from reports import report, write

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.evaluation.rows import Report


def test_report_survives_json() -> None:
    given = report()
    assert Report.model_validate_json(given.model_dump_json()) == given


def test_report_is_read_from_its_file_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    write(tmp_path, report())
    path = tmp_path / "report.json"
    assert read_model(path, Report) == report()
    written = json.loads(path.read_text(encoding="utf-8"))
    for change, sentence in (
        ({"n": "1024"}, "n should be a whole number, but is '1024'"),
        ({"quick": 1}, "quick should be true or false, but is 1"),
        ({"seconds": None}, "seconds should be a number, but is empty"),
        ({"prompts": "a prompt"}, "prompts should be "),
        ({"versions": {"torch": 2}}, "versions.torch should be text, but is 2"),
        ({"speed": 1}, "there is no key speed (did you mean 'seed'?)"),
    ):
        path.write_text(json.dumps(written | change), encoding="utf-8")
        with pytest.raises(RMDError) as error:
            read_model(path, Report)
        assert str(error.value).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": "abc"},
        {"n": "3"},
        {"n": True},
        {"quick": "yes"},
        {"speed": 3},
        {"seconds": float("nan")},
        {"n": 0},
        {"checks": [{"name": "speed", "target": "15", "measured": "fast", "passed": True}]},
    ],
)
def test_report_refuses_what_it_cannot_show(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        Report.model_validate(report().model_dump() | change)


def test_report_refuses_two_rows_of_one_name_and_a_broken_plan() -> None:
    data = report().model_dump()
    with pytest.raises(RMDError, match="'rmd' occurs twice"):
        Report.model_validate(data | {"rows": [data["rows"][4], data["rows"][4]]})
    with pytest.raises(RMDError, match="the plan: stages is missing"):
        Report.model_validate(data | {"plan": {}})
