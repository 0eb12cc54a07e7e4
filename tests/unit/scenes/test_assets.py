"""The packaged weights: found, or the command that builds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd.errors import RMDError
from rmd.scenes import assets
from rmd.scenes.assets import teacher_folder


def test_the_packaged_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "assets_folder", lambda: tmp_path)
    with pytest.raises(RMDError, match=r"lacks the scenes' teacher: build it .* `rmd scenes train-teacher --out"):
        teacher_folder()
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model_index.json").touch()
    assert teacher_folder() == tmp_path / "teacher"
