"""Everything that the documentation names exists, its code compiles, and its commands are accepted."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from helpers import make_recipe, tiny_pipeline
from pydantic import BaseModel

from research.scenes.__main__ import app as factory
from rmd.cli.app import app
from rmd.common.errors import RMDError
from rmd.recipes.layers import recipe_names
from rmd.recipes.methods import METHODS
from rmd.recipes.schema import Recipe, load_recipe, to_yaml
from rmd.sample.pipeline import RMDPipeline

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "docs/plugins/*.md", "research/*.md")
    for path in ROOT.glob(pattern)
)
PACKAGES = sorted(path.parent.name for path in (ROOT / "src" / "rmd").glob("*/__init__.py"))
FOLDERS = ("src", "tests", "docs", "examples", "integrations", "research", "tools")
GROUPS = {f"rmd.{kind}" for kind in ("formats", "methods", "metrics", "models", "prompts", "trackers", "worlds")}
"""Groups of entry points, most of which are not modules."""
SUFFIXES = ("html", "json", "jsonl", "md", "parquet", "png", "py", "safetensors", "toml", "webp", "yaml")
"""Endings of names with a dot that are files rather than settings or attributes."""


def text_of(page: str) -> str:
    """Return a page; the changelog without its list of names that have changed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.partition("\n### Renamed")[0] if page == "CHANGELOG.md" else text


def blocks(page: str, *languages: str) -> list[str]:
    """Return the fenced code of a page in one of some languages ("" for blocks without one)."""
    fenced = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text_of(page), re.DOTALL | re.MULTILINE)
    return [body for _, language, body in fenced if language in languages]


def inline(page: str) -> list[str]:
    """Return the code spans of a page, outside its blocks."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.replace(r"\|", "|").split()) for span in re.findall(r"`([^`]+)`", prose)]


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python", "py")])
def test_code_compiles_and_its_imports_exist(page: str) -> None:
    for code in blocks(page, "python", "py"):
        tree = ast.parse(code, page)
        imports = [each for each in ast.walk(tree) if isinstance(each, ast.Import | ast.ImportFrom)]
        module = ast.Module([each for each in imports if "my_package" not in ast.unparse(each)], [])
        exec(compile(module, page, "exec"), {})


@pytest.mark.heavy
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_first_example_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs with a tiny pipeline and a recipe for it, in place of a loaded SDXL and the recipe `sdxl`."""
    code = blocks(page, "python")[0]
    assert 'recipe="sdxl"' in code
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(to_yaml(make_recipe("none", train={"iterations": 2})), encoding="utf-8")
    exec(compile(code.replace('"sdxl"', '"tiny.yaml"'), page, "exec"), {"pipe": tiny_pipeline()})
    assert Path("ball.png").is_file() and RMDPipeline.from_pretrained("out", teacher=saved(tmp_path)) is not None


def saved(folder: Path) -> str:
    """Save the tiny pipeline, and return its folder."""
    tiny_pipeline().save_pretrained(folder / "teacher")
    return str(folder / "teacher")


# --- names ------------------------------------------------------------------------------------------------------------


def resolves(name: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of one; fields of classes count as attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(value, part):
                return any(part in getattr(each, "__annotations__", {}) for each in getattr(value, "__mro__", ()))
            value = getattr(value, part)
        return True
    return False


@cache
def settings() -> frozenset[str]:
    """Return the dotted keys of recipes, including those of every method."""
    methods = [METHODS.get(name).Config for name in METHODS.names()]
    return frozenset([*_keys(Recipe, ""), *(key for each in methods for key in _keys(each, "method."))])


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")


@pytest.mark.parametrize("page", PAGES)
def test_names_in_rmd_exist(page: str) -> None:
    names = set(re.findall(r"(?<![\w/.-])rmd(?:\.[A-Za-z_]\w*)+", text_of(page))) - GROUPS
    assert [name for name in sorted(names) if not resolves(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_settings_and_short_names_exist(page: str) -> None:
    tops = {key.split(".")[0] for key in settings()}
    wrong = []
    for span in inline(page):
        match = re.match(r"([a-z_]+)((?:\.\w+)+)(?:=|$)", span)
        if match is None or match[2].rpartition(".")[2] in SUFFIXES or match[1] not in {*tops, *PACKAGES}:
            continue
        name = match[1] + match[2]
        if name not in settings() and not resolves(f"rmd.{name}"):
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_tests_exist(page: str) -> None:
    names = {span for span in inline(page) if re.fullmatch(r"test_\w+", span)}
    assert [name for name in sorted(names) if f"def {name}(" not in _tests()] == []


@cache
def _tests() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


# --- paths and links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    text = text_of(page)
    paths = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})(?:/[\w.-]+)+", text)
    missing = [path for path in paths if not (ROOT / path.rstrip(".")).exists()]
    for path in re.findall(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})/\w+\.(?:py|yaml)", text):
        missing += [] if (ROOT / "src" / "rmd" / path).is_file() else [path]
    assert sorted(set(missing)) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        if "://" not in target and (not place.exists() or (anchor and anchor not in _anchors(place))):
            wrong.append(target)
    assert wrong == []


def _anchors(path: Path) -> list[str]:
    """Return the anchors that the headings of a page get on GitHub."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


# --- commands ---------------------------------------------------------------------------------------------------------

PROGRAMS: dict[str, Any] = {  # typer brings click's classes under names of its own, or needs click
    "rmd": typer.main.get_command(app),
    "research.scenes": typer.main.get_command(factory),
}
"""The command lines of this repository."""
OTHER_OPTIONS = {"--ar", "--no"}
"""Options in the text that belong to other programs."""


def command_lines(page: str) -> list[list[str]]:
    """Return every command of this repository's programs in the blocks of a page, as a list of its words."""
    lines = "\n".join(blocks(page, "", "bash")).replace("\\\n", " ").splitlines()
    matches = [re.search(r"(?:^|\brun |-m )((?:rmd|research\.scenes) \w.*)", line) for line in lines]
    return [
        [part for part in shlex.split(match[1].replace("$RESUME", ""), comments=True) if part != "..."]
        for match in matches
        if match is not None
    ]


def verb_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command or group that a command line calls, and its arguments."""
    command, rest = PROGRAMS[words[0]], words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest


def options_of(command: Any) -> set[str]:
    """Return the options of a command, and of the commands below it."""
    below = [options_of(each) for each in getattr(command, "commands", {}).values()]
    return {"--help", *(option for each in command.params for option in each.opts)}.union(*below)


@cache
def examples() -> frozenset[str]:
    """Return the names by which the example plug-ins are known once they are installed."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*/pyproject.toml")]
    return frozenset(name for text in texts for name in re.findall(r'^([\w-]+) = "\w+:\w+"$', text, re.MULTILINE))


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)])
def test_commands_are_accepted(page: str) -> None:
    for words in command_lines(page):
        command, rest = verb_of(words)
        if "--help" in rest:
            continue
        assert not hasattr(command, "commands"), words
        values = command.make_context("rmd", rest).params
        recipe, overrides = values.get("recipe"), list(values.get("set_") or values.get("overrides") or ())
        if recipe in recipe_names() and not examples() & set(re.findall(r"[\w-]+", " ".join(overrides))):
            try:
                load_recipe(str(recipe), overrides)
            except RMDError as error:
                pytest.fail(f"{shlex.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page: str) -> None:
    everywhere = OTHER_OPTIONS.union(*map(options_of, PROGRAMS.values()))
    wrong = []
    for span in inline(page):
        words = span.removeprefix("python -m ").split()
        named = bool(words) and words[0] in PROGRAMS
        command, rest = verb_of(words) if named else (None, words if span.startswith("-") else [])
        known = options_of(command) if named else everywhere
        wrong += [span for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
        if named and command is PROGRAMS[words[0]] and rest and not rest[0].startswith("-"):
            wrong.append(span)  # there is no such verb
    assert wrong == []
