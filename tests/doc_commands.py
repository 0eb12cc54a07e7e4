"""Collects the code blocks of the documentation, and runs them in a folder that has what they name, on tiny models.

A block of commands or of Python runs as it stands, except that a training has one iteration, and tiny models take the
place of large ones. A comment in the line above a block says what else is true of it:

- `<!-- slow -->`: it runs with the slow tests only;
- `<!-- not run: REASON -->`: it is not run, for one of `REASONS`.

Blocks that show output have the language `text`. All blocks of a page run in one folder and one namespace, in order.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import TINY, make_student
from helpers import PROMPTS, tiny_pipeline

from rmd.cli.app import main

ROOT = Path(__file__).parents[1]
REASONS = (
    "installs packages", "needs a GPU", "needs other files", "needs other programs", "needs raters", "needs the Hub",
    "needs the package of this page", "runs until it is stopped", "takes hours", "takes minutes",
)  # fmt: skip
LANGUAGES = ("", "bash", "python", "py")
"""Languages of the blocks that run; those of others are data or output."""
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>slow|not run: [^>]+) -->\n)?^ *```(?P<language>\w*)\n(?P<body>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
SMALL = {"train.iterations": "1", "train.batch_size": "2", "data.prompt_cache_mb": "1"}
"""Settings of every training that the page does not set itself."""
FULL_SIZE = {"plan.sides": "[16, 32]", "plan.multiple": "4", "train.dtype": "float32"}
"""Settings of trainings of other than the packaged teachers."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    body: str
    mark: str

    @property
    def reason(self) -> str | None:
        """The reason for not running it; None: it runs."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else None

    def commands(self) -> list[list[str]]:
        """Return the words of its command lines, without comments and empty lines."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page that hold commands or Python."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text[: match.start("body")].count("\n")
        found.append(Block(page, line, match["language"], match["body"], match["mark"] or ""))
    return [block for block in found if block.language in LANGUAGES]


def furnish(folder: Path) -> None:
    """Put into a folder what the pages name."""
    for name in ("prompts.txt", "unseen.txt"):
        (folder / name).write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    pq.write_table(pa.table({"prompt": PROMPTS}), folder / "captions.parquet")
    (folder / "my-recipe.yaml").write_text(
        "extends: sdxl\nname: my-sdxl\nteacher: path/to/pipeline\ndata: {prompts: prompts.txt}\n"
        "plan: {sides: [16, 32], multiple: 4}\n",
        encoding="utf-8",
    )
    large = tiny_pipeline(prediction="epsilon", two_encoders=True)
    for place in ("path/to/pipeline", "path/to/turbo"):
        large.save_pretrained(folder / place)
    for place in ("runs/mine", "runs/other", "runs/demo"):  # each has a folder teacher and a folder student
        make_student(folder / place, "sdxl", "lora")
    make_student(folder, "sdxl", "full")
    make_student(folder / "runs/wan", "wan", "lora")


def namespace() -> dict[str, Any]:
    """Return the names that the Python of the pages takes for granted."""
    places = {"STUDENT": "student", "TEACHER": "runs/mine/teacher", "LORA_STUDENT": "runs/mine/student"}
    return {"pipe": tiny_pipeline(), "my_pipeline": TINY["sdxl"]().pipe, **places}


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Run a block in the working folder; fail if a command does, or if Python raises."""
    if block.language.startswith("py"):
        exec(compile("\n" * block.line + block.body, str(ROOT / block.page), "exec"), names)
        return
    for words in block.commands():
        status = run_command(words)
        if status != 0:
            pytest.fail(f"{block.page}:{block.line}: {shlex.join(words)} ended with status {status}")


def run_command(words: Sequence[str]) -> int:
    """Run a command of this repository in this process, made small, and return its exit status."""
    if words[0] == "rmd":
        return main(small(words[1:]))
    assert list(words[:2]) == ["python", "-m"], f"mark this block, since tests cannot run {words[0]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(words[2:]))
        patch.delitem(sys.modules, f"{words[2]}.__main__", raising=False)
        try:
            runpy.run_module(words[2], run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def small(words: Sequence[str]) -> list[str]:
    """Return the arguments of `rmd`, with what makes the command short where the page does not say it otherwise."""
    arguments, verb = list(words), words[0]
    if verb == "train":
        if "--out" in arguments:
            shutil.rmtree(arguments[arguments.index("--out") + 1], ignore_errors=True)  # of an earlier page's run
        arguments += settings(arguments)
    elif verb == "cache":
        arguments += ["--set", f"train.dtype={FULL_SIZE['train.dtype']}"]  # as the training that reads it
    elif verb == "probe" or "--fit" in arguments:
        arguments += ["--samples", "6"]
        arguments += ["--steps", "2"] if verb == "probe" else []
    elif words[:2] == ["eval", "model"]:
        arguments += ["--samples", "6"]
    elif words[:2] == ["bench", "train"]:
        arguments += ["--repeats", "1", *settings(arguments)]
    elif "--compare-teacher" in arguments:
        arguments += ["--teacher-steps", "2"]
    return arguments


def settings(arguments: Sequence[str]) -> list[str]:
    """Return `--set` options for a short training of a recipe, apart from the keys that are set already."""
    given = {text.partition("=")[0] for text in arguments}
    packaged = any(text.startswith("scenes") for text in arguments[1:3])
    wanted = SMALL if packaged else SMALL | FULL_SIZE
    return [word for key, value in wanted.items() if key not in given for word in ("--set", f"{key}={value}")]
