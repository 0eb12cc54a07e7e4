"""Weights & Biases and Trackio receive everything, and a resumed run continues its page."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import make_recipe
from PIL import Image

from rmd.common.errors import RMDError
from rmd.train.loop import Trainer
from rmd.train.tracking import Trackio, Wandb, check_trackers


@pytest.mark.parametrize("kind", [Wandb, Trackio])
def test_a_service_is_told_everything_and_goes_on_with_the_same_page(
    kind: type[Wandb] | type[Trackio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []
    module = SimpleNamespace(
        init=lambda **options: told.append(("init", options)),
        log=lambda values, step: told.append(("log", values, step)),
        Image=lambda image: ("picture", image.size),
        finish=lambda: told.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, kind.package, module)
    kind.check()
    for start in (0, 2):
        tracker = kind(tmp_path / "mine", start=start, config={"a": 1})
        tracker.log_metrics(start + 1, {"loss": 0.5})
        tracker.log_picture("samples", start + 1, Image.new("RGB", (4, 2)))
        tracker.close()
    assert [entry[0] for entry in told] == ["init", "log", "log", "finish"] * 2
    assert told[0][1] == told[4][1] and told[0][1]["resume"] == "allow"
    assert told[0][1].items() >= {"project": "rmd", "config": {"a": 1}}.items()
    kind(tmp_path / "other" / "mine", start=0, config={}).close()
    marks = [(told[i][1]["name"], told[i][1].get("id")) for i in (0, -2)]
    assert marks[0] != marks[1] and all(name.startswith("mine") for name, _ in marks)
    assert told[1] == ("log", {"loss": 0.5}, 1) and told[6] == ("log", {"samples": ("picture", (4, 2))}, 3)


def test_a_service_that_is_not_installed_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RMDError, match=r"^train.loggers: wandb needs `pip install 'rmd\[track\]'`$"):
        check_trackers(["wandb"])
    recipe = make_recipe(tmp_path / "none.txt", train={"loggers": ["wandb"]})
    with pytest.raises(RMDError, match=r"^train.loggers: wandb needs"):
        Trainer(recipe, None, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
