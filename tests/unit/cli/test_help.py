"""The help of every verb: grouped by task, and readable in a narrow terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from rmd.cli.app import app, main
from rmd.cli.help import GROUPS

ROOT: Any = typer.main.get_command(app)
COLUMNS = 80


def paths(command: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """Return the words of a command and of all commands below it."""
    yield above
    for name, below in getattr(command, "commands", {}).items():
        yield from paths(below, *above, name)


def help_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", COLUMNS)
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


def test_every_verb_is_in_a_group_and_the_groups_are_in_order(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of((), capsys, monkeypatch)
    assert re.findall(r"^╭─ ([\w ]+?) ─+╮$", text, re.MULTILINE) == ["Options", *GROUPS]
    ungrouped = [name for name, verb in ROOT.commands.items() if verb.rich_help_panel not in GROUPS]
    assert ungrouped == [], "give these verbs a group of rmd.cli.help where rmd.cli.app registers them"


@pytest.mark.parametrize("words", list(paths(ROOT)), ids=" ".join)
def test_help_leaves_room_for_the_explanations(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin in the left half of a narrow terminal, and neither Python's types nor bounds are shown."""
    lines = help_of(words, capsys, monkeypatch).splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert [line for line in lines if re.search(r"<(bool|str|int|float|path|list)|<=|…", line)] == []
    (shown,) = [line for line in lines if line.endswith("│") and "Show this message and exit." in line]
    assert shown.index("Show") <= COLUMNS / 2


def test_the_error_about_a_value_out_of_bounds_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "scenes", "--repeats", "999999"]) == 2
    assert "10000" in capsys.readouterr().err
