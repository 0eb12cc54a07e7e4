"""`--variant`: every command that loads weights loads the variant of the weight files that it is given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from families import make_student, recipe_of
from helpers import PROMPTS, write_prompts

from rmd.cli.app import main
from rmd.recipes.schema import to_yaml


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a LoRA student whose teacher has two variants, neither of which is the plain one."""
    folder = tmp_path_factory.mktemp("variants")
    make_student(folder, "pixart", "lora")
    for path in (folder / "teacher").rglob("*.safetensors"):
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
        path.rename(path.with_suffix(".ema.safetensors"))
    prompts = write_prompts(folder)
    recipe = recipe_of("pixart", folder / "teacher", "lora", data={"prompts": str(prompts)})
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    return folder


@pytest.mark.parametrize("verb", ["generate", "export", "cache", "train"])
def test_a_command_loads_the_variant_that_it_is_reported(
    verb: str, home: Path, tmp_path: Path, small_panels: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "generate": [PROMPTS[0], "--model", str(home / "student")],
        "export": [str(home / "student"), "--to", "diffusers-lora"],
        "cache": [str(home / "prompts.txt"), "--teacher", str(home / "teacher")],
        "train": [str(home / "recipe.yaml"), "--dry-run"],
    }[verb]
    assert main([verb, *arguments, "--out", str(tmp_path / "without")]) == 1
    assert "choose one with --variant" in capsys.readouterr().err
    assert main([verb, *arguments, "--out", str(tmp_path / "with"), "--variant", "ema"]) == 0, capsys.readouterr().err
