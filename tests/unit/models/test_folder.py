"""The files of a pipeline's folder: variants, damaged files, pickles and foreign classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import DAMAGED, POINTER, SPY, STEM, TEXT, edit, refused, rewrite
from families import TINY
from safetensors.torch import load_file

from rmd.common.errors import RMDError
from rmd.models import load_backbone
from rmd.models.folder import variants

families = pytest.mark.parametrize("family", sorted(TINY))


@families
def test_the_only_variant_loads_without_being_chosen(family: str, teacher: Callable[[str], Path]) -> None:
    folder = teacher(family)
    usual = load_backbone(folder).denoiser.state_dict()
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    loaded = load_backbone(folder).denoiser.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in usual.items())


def test_a_variant_can_be_chosen(teacher: Callable[[str], Path]) -> None:
    folder = teacher("sdxl")
    path = folder / "unet" / STEM
    changed = path.with_suffix(".ema.safetensors")
    shutil.copy(path, changed)
    rewrite(changed, lambda tensors: tensors["conv_in.bias"].fill_(5))
    assert not bool((load_backbone(folder).denoiser.conv_in.bias == 5).any())
    assert bool((load_backbone(folder, variant="ema").denoiser.conv_in.bias == 5).all())
    with pytest.raises(RMDError, match="variant=fp8"):
        load_backbone(folder, variant="fp8")
    shutil.copy(path, path.with_suffix(".fp16.safetensors"))
    path.unlink()
    refused(folder, r"unet holds weights in the variants .*, .*: choose one with --variant, or variant= in Python$")


def test_names_of_variants() -> None:
    names = [
        "model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors", "config.json",
        "model.safetensors.index.fp16.json", "other.safetensors",
    ]  # fmt: skip
    assert variants(names, "model") == ["fp16"]
    assert variants(["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "model") == [None]
    assert variants(["model.safetensors", "model.ema.safetensors"], "model") == [None, "ema"]


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize(("part", "file"), [("text_encoder", TEXT), ("unet", STEM), ("vae", STEM)])
def test_a_damaged_file_is_one_sentence_in_every_part(
    part: str, file: str, how: str, teacher: Callable[[str], Path]
) -> None:
    path = teacher("sdxl") / part / file
    content, sentence = DAMAGED[how]
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    refused(path.parent.parent, rf"^{path} {sentence}")


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "unet/config.json", "model_index.json"])
def test_a_git_lfs_pointer_in_place_of_any_file_is_refused(name: str, teacher: Callable[[str], Path]) -> None:
    folder = teacher("sdxl")
    (folder / name).write_bytes(POINTER)
    refused(folder, rf"{name} is a git-LFS pointer")


def test_damaged_configurations_and_tokenizers_are_refused(teacher: Callable[[str], Path]) -> None:
    folder = teacher("sdxl")
    for name, content, sentence in [
        ("tokenizer/tokenizer.json", "{", r"tokenizer/tokenizer\.json is not valid JSON"),
        ("tokenizer/tokenizer.json", "{}", rf"^cannot load the pipeline {folder}: "),
        ("unet/config.json", '{"block_out_channels": 3}', rf"^cannot load {folder}/unet: "),
        ("text_encoder/config.json", '{"hidden_size": "many"}', rf"^cannot load {folder}/text_encoder: "),
        ("scheduler/scheduler_config.json", "[]", r"scheduler_config\.json should contain a JSON object"),
    ]:
        path = folder / name
        good = path.read_text()
        if content.startswith('{"'):
            edit(path, **json.loads(content))
        else:
            path.write_text(content)
        refused(folder, sentence)
        path.write_text(good)
    assert load_backbone(folder).family == "sdxl"


def test_pickles_are_refused_by_name(teacher: Callable[[str], Path]) -> None:
    folder = teacher("sdxl")
    (folder / "text_encoder" / TEXT).unlink()
    torch.save(load_file(folder / "text_encoder_2" / TEXT), folder / "text_encoder" / "pytorch_model.bin")
    refused(folder, r"text_encoder holds its weights as pytorch_model\.bin, a pickle, which can run code")


@pytest.mark.parametrize(
    "changes",
    [
        {"vae": ["os", "system"]},
        {"vae": ["my_module", "X"]},
        {"vae": ["diffusers", "logging"]},
        {"vae": ["diffusers", "no.such"]},
        {"vae": ["transformers", "_private"]},
        {"vae": "AutoencoderKL", "unet": [["diffusers"], "UNet2DConditionModel"]},
        {"_class_name": ["my_module", "X"]},
    ],
)
def test_foreign_classes_are_refused_before_anything_runs(
    changes: dict[str, Any], teacher: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = teacher("sdxl")
    edit(folder / "model_index.json", **changes)
    for place in (folder, folder / "vae"):
        for name in ("my_module.py", "pipeline.py", "os.py"):
            (place / name).write_text(SPY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    refused(folder, r"which is not a class of .*: RMD runs no code that comes with weights$")
    assert not list(folder.rglob("ran"))
