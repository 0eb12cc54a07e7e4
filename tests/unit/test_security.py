"""Nothing that is loaded can run code: no such call in the sources, and files that would, if they were trusted."""

from __future__ import annotations

import ast
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY

import rmd
from rmd.common.errors import RMDError
from rmd.data.prompts import read_source
from rmd.models.student import LORA_NAME, apply_lora_file
from rmd.recipes.layers import read_layers
from rmd.recipes.schema import DataConfig

NODES = Path(__file__).parents[2] / "integrations" / "comfyui"
SOURCES = sorted([*Path(rmd.__file__).parent.rglob("*.py"), *NODES.glob("*.py")])
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.hub.load", "torch.jit.load", "os.system", "os.popen",
}  # fmt: skip
FORBIDDEN_METHODS = {"extract", "extractall", "read_pickle", "from_single_file"}
FORBIDDEN_OPTIONS = {"trust_remote_code", "custom_pipeline", "allow_pickle"}
REQUIRED = {
    "torch.load": ("weights_only", "True"),
    "yaml.load": ("Loader", "_Loader"),
    "np.load": ("allow_pickle", "-"),
}


class Call:
    """Is pickled as a call of a function: whoever unpickles it makes the call."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def faults(source: str) -> Iterator[str]:
    """Calls in a module that could run what a file holds."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, options = ast.unparse(call.func), {option.arg: ast.unparse(option.value) for option in call.keywords}
        allowed = FORBIDDEN_OPTIONS & options.keys()
        if name in FORBIDDEN_NAMES | FORBIDDEN_CALLS or name.rpartition(".")[2] in FORBIDDEN_METHODS:
            yield f"line {call.lineno}: {name}"
        if any(options[option] != "False" for option in allowed):
            yield f"line {call.lineno}: {name} with {sorted(allowed)}"
        if name in REQUIRED and options.get(REQUIRED[name][0]) != REQUIRED[name][1]:
            yield f"line {call.lineno}: {name} without {'='.join(REQUIRED[name])}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_makes_a_call_that_could_run_what_a_file_holds(path: Path) -> None:
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)", "pickle.loads(b)", "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)",
        "yaml.load(text, Loader=yaml.Loader)", "shard.extractall()", "f(trust_remote_code=True)",
        "f(allow_pickle=given)", "os.system('ls')",
    ],
)  # fmt: skip
def test_such_calls_are_found(line: str) -> None:
    assert len(list(faults(line))) == 1


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch proof']",
        "!!python/object/new:os.system ['touch proof']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!anything 1",
    ],
)
def test_a_recipe_makes_plain_values_only(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(f"extends: scenes\nname: {value}\n")
    with pytest.raises(RMDError, match=r"the tag .* has no meaning in a recipe"):
        read_layers("recipe.yaml")
    with pytest.raises(RMDError, match=r"the tag .* has no meaning in a recipe"):
        read_layers("scenes", [f"name={value}"])
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_members_of_an_archive_are_read_and_never_extracted(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with tarfile.open(work / "shard.tar", "w") as shard:
        for name in ("../outside.txt", str(tmp_path / "absolute.txt"), "inside.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            shard.addfile(member, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
    assert "inside.txt" in read_source(DataConfig(prompts=str(work / "shard.tar"))).texts
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["shard.tar", "work"]


def test_a_pickle_in_place_of_an_adapter_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"weight": Call(f"touch {tmp_path / 'proof'}")}, tmp_path / LORA_NAME)
    with pytest.raises(RMDError):
        apply_lora_file(TINY["sdxl"](), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LORA_NAME]
