"""The files of a report: their keys, and that each is written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reports import NAMES, grids, panel, report, write
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.pictures import png
from rmd.report import write_report


def test_json_has_the_agreed_keys(tmp_path: Path) -> None:
    write(tmp_path, report())
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {"rows", "seconds", "peak_memory_gb", "config", "versions", "checks", "quick"} <= set(data)
    metrics = {
        "attributes", "kernel_distance", "kernel_distance_to_teacher", "frechet_distance", "high_frequency",
        "diversity",
    }  # fmt: skip
    assert [row["name"] for row in data["rows"]] == list(NAMES)
    assert all({"name", "nfe", "seconds_per_image", "speedup"} <= set(row) for row in data["rows"])
    assert all(metrics == set(row["measures"]) for row in data["rows"])
    assert set(data["rows"][1]["measures"]["attributes"]) == {"value", "low", "high", "parts"}
    assert data["config"]["plan"] == {"sides": [32, 64]}
    assert data["history"][0]["gap"] is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tdm": grids()["rmd"]}, "no row of that name"),
        ({"rmd": grids(3)["rmd"]}, "3 pictures for 10 prompts"),
        ({"rmd": grids()["rmd"].float()}, "float32"),
    ],
)
def test_wrong_pictures_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(RMDError, match=message):
        write_report(report(), wrong, [], png(panel(7)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_appear_by_renaming_and_a_failure_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, report())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.html", "report.json"}
    real, written = Path.write_text, []

    def fill_the_disk(self: Path, text: str, encoding: str) -> int:
        written.append(self.name)
        if "html" in self.name:
            raise OSError(28, "No space left on device")
        return real(self, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, report(quick=True))
    assert written == [".report.json.partial", ".report.html.partial"]
    assert {path.name for path in tmp_path.iterdir()} == set(before)
    assert (tmp_path / "report.html").read_bytes() == before["report.html"]
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["quick"] is True
