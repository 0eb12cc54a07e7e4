"""The files of comparisons: the page gets the media that a design names, and nothing else of the folder."""

from __future__ import annotations

from pathlib import Path

import torch
from asgi import ask
from starlette.applications import Starlette
from studies import small_study

from rmd.ui.comparing import Comparisons
from rmd.ui.contents import Contents
from rmd.ui.models import Models
from rmd.ui.routes import Files


def test_media_of_a_comparison_and_nothing_else(tmp_path: Path) -> None:
    study = small_study(tmp_path / "comparison-001", "a", "b")
    comparisons = Comparisons(tmp_path)
    app = Starlette(routes=list(Files(Contents(Models([], device=torch.device("cpu")), comparisons)).routes))
    name = study.design.files[0][0]
    answer = ask(app, f"/answers/comparison-001/{name}")
    assert (answer.status, answer.content) == (200, (study.media / name).read_bytes())
    for path in ("key.json", "votes.sqlite", "../key.json", "..%2Fkey.json", "nothing.png"):
        assert ask(app, f"/answers/comparison-001/{path}").status == 404
    assert ask(app, f"/answers/comparison-002/{name}").status == 404
