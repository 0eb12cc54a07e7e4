"""A run is identified by contents: the same in any folder, and different as soon as a value differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import TINY, recipe_of
from PIL import Image
from torch import nn

from rmd.core.plan import Stage
from rmd.data.images import ImageFolder, Images
from rmd.data.prompts import Prompts
from rmd.models.teacher import load_teacher
from rmd.train.identity import images_key, network_key
from rmd.train.weights import load_sharded_teacher


def test_a_network_is_told_by_the_values_and_the_shapes_of_its_weights() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3))
    key = network_key(network)
    assert len(key) == 64 and network_key(network) == key
    changed = []
    with torch.no_grad():
        for parameter in network.parameters():
            before = parameter.clone()
            parameter.mul_(1.01)
            changed.append(network_key(network))
            parameter.copy_(before)
    reshaped = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3))
    reshaped.load_state_dict(network.state_dict())
    assert network_key(reshaped) == key
    reshaped[0].weight = nn.Parameter(reshaped[0].weight.reshape(50, 20, 2))
    assert len({key, *changed, network_key(reshaped)}) == 6


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_without_weights_has_the_key_of_its_files(family: str, dtype: str, tmp_path: Path) -> None:
    """A run may be resumed with another number of processes, each of which reads its shards of the weights."""
    TINY[family]().pipe.save_pretrained(tmp_path / "teacher")
    recipe = recipe_of(family, tmp_path / "teacher", "lora", train={"dtype": dtype})
    whole = load_teacher(recipe)
    backbone, weights = load_sharded_teacher(recipe)
    assert network_key(backbone.denoiser, weights) == network_key(whole.denoiser)


def test_settings_that_are_the_defaults_do_not_count_and_others_do() -> None:
    first, other = TINY["sdxl"]().denoiser, TINY["sdxl"]().denoiser
    key = network_key(first)
    other.register_to_config(_name_or_path="elsewhere", a_setting_of_the_future=True)
    assert network_key(other) == key
    other.register_to_config(norm_eps=1e-3)
    assert network_key(other) != key


def test_prompts_are_told_by_their_texts_and_their_order() -> None:
    texts = ["a", "bc", "d", ""]
    others = [["a", "bc", "d"], ["bc", "a", "d", ""], ["ab", "c", "d", ""], ["a", "bc", "e", ""], ["a\0bc", "d", ""]]
    keys = {Prompts(each, 0).key for each in [texts, *others]}
    assert len(keys) == 6 and Prompts(tuple(texts), 7).key == Prompts(texts, 0).key
    assert len(Prompts(["\ud83d"], 0).key) == 64  # half of an emoji


def test_images_are_told_by_their_files_and_captions(tmp_path: Path) -> None:
    def key(folder: Path) -> str | None:
        return images_key(Images(ImageFolder.read(folder), Stage(1, 8, 8), seed=0))

    def write(folder: Path, colour: str, caption: str) -> str | None:
        folder.mkdir()
        Image.new("RGB", (8, 8), colour).save(folder / "a.png")
        (folder / "a.txt").write_text(caption)
        return key(folder)

    same = [write(tmp_path / name, "red", "a wall") for name in ("here", "there")]
    others = [write(tmp_path / "c", "blue", "a wall"), write(tmp_path / "d", "red", "a sea")]
    assert len({*same, *others}) == 3 and images_key(None) is None
