"""A teacher without weights takes no memory, and errors in its files are reported.

tests/distributed reads weights in shards.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import TINY, recipe_of
from safetensors.torch import load_file, save_file

from rmd.common.errors import RMDError
from rmd.models.roles import build_roles
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import Recipe
from rmd.train.weights import TeacherWeights, load_sharded_teacher

families = pytest.mark.parametrize("family", sorted(TINY))
STEM = "diffusion_pytorch_model.safetensors"


def saved(family: str, folder: Path, mode: str = "lora", **train: object) -> Recipe:
    TINY[family]().pipe.save_pretrained(folder)
    return recipe_of(family, folder, mode, train=train)


@families
def test_adapters_have_values_and_the_rest_no_room(family: str, tmp_path: Path) -> None:
    recipe = saved(family, tmp_path, dtype="bfloat16")
    (backbone, weights), loaded = load_sharded_teacher(recipe), load_teacher(recipe).denoiser
    assert weights.files.keys() == loaded.state_dict().keys()
    for name, parameter in backbone.denoiser.named_parameters():
        usual = loaded.get_parameter(name)
        assert parameter.shape == usual.shape and parameter.dtype == usual.dtype == weights.dtypes[name]
        assert parameter.untyped_storage().nbytes() <= 4
    kept = {name for name, dtype in weights.dtypes.items() if dtype == torch.float32}
    assert bool(kept) == (family == "wan") and len(kept) < len(weights.dtypes)
    roles = build_roles(backbone.denoiser, mode="lora", targets=backbone.adapted("all"), rank=2, alpha=4.0, seed=3)
    others = build_roles(loaded, mode="lora", targets=backbone.adapted("all"), rank=2, alpha=4.0, seed=3)
    weights.drop(backbone.denoiser)
    roles.find_parameters()
    for name, value in roles.state("student").items():
        assert torch.equal(value, others.state("student")[name])
    assert {parameter.device.type for parameter in roles.frozen()} == {"meta"}
    assert not any(parameter.requires_grad for parameter in roles.frozen())


def test_three_copies_of_nothing_are_nothing(tmp_path: Path) -> None:
    backbone, _ = load_sharded_teacher(saved("sdxl", tmp_path, "full"))
    roles = build_roles(backbone.denoiser, mode="full", targets=())
    for network, trained in roles.networks():
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        assert {parameter.requires_grad for parameter in network.parameters()} == {trained}


def test_what_is_no_weight_is_there(tmp_path: Path) -> None:
    backbone, _ = load_sharded_teacher(saved("wan", tmp_path))
    assert backbone.pipe.config._name_or_path == str(tmp_path)
    for name, buffer in TINY["wan"]().denoiser.named_buffers():
        assert torch.equal(backbone.denoiser.get_buffer(name), buffer)


def test_files_are_found_by_their_index(tmp_path: Path) -> None:
    recipe = saved("pixart", tmp_path)
    TINY["pixart"]().denoiser.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    (tmp_path / "transformer" / STEM).unlink()
    _, weights = load_sharded_teacher(recipe)
    assert len(set(weights.files.values())) > 1
    for name, path in weights.files.items():
        assert name in load_file(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    recipe = saved("sdxl", tmp_path)
    (tmp_path / "unet" / STEM).rename(tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(RMDError, match=r"unet holds its weights as diffusion_pytorch_model\.bin, a pickle"):
        load_sharded_teacher(recipe)


def weights_of(recipe: Recipe) -> tuple[torch.nn.Module, TeacherWeights]:
    backbone, weights = load_sharded_teacher(recipe)
    weights.drop(backbone.denoiser)
    return backbone.denoiser, weights


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    recipe = saved("sdxl", tmp_path)
    path = tmp_path / "unet" / STEM
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)
    with pytest.raises(RMDError, match=r"unet lacks the weight conv_in\.weight, which its config\.json asks for"):
        load_sharded_teacher(recipe)


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    recipe = saved("sdxl", tmp_path)
    path = tmp_path / "unet" / STEM
    save_file({name: tensor[..., :1].contiguous() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(RMDError, match=r"unet holds the weight conv_in\.weight in the shape \(8, 4, 3, 1\), where"):
        load_sharded_teacher(recipe)


def test_a_weight_that_the_network_lacks_is_named(tmp_path: Path) -> None:
    recipe = saved("sdxl", tmp_path)
    path = tmp_path / "unet" / STEM
    save_file({**load_file(path), "conv_in.more": torch.zeros(2)}, path)
    with pytest.raises(RMDError, match=r"unet holds the weight conv_in\.more, which the network of its config\.json"):
        load_sharded_teacher(recipe)


def test_a_variant_alone_is_found(tmp_path: Path) -> None:
    recipe = saved("sdxl", tmp_path)
    for path in list(tmp_path.rglob("*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))
    _, weights = load_sharded_teacher(recipe)
    assert {path.name for path in weights.files.values()} == {"diffusion_pytorch_model.fp16.safetensors"}


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    recipe = saved("sdxl", tmp_path)
    network, weights = weights_of(recipe)
    path = tmp_path / "unet" / STEM
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RMDError, match=r"^cannot read the weights in .*safetensors: "):
        weights.fill(network)


def test_a_config_that_is_none_is_told(tmp_path: Path) -> None:
    recipe = saved("sdxl", tmp_path)
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"nothing": 1}))
    with pytest.raises(RMDError, match=r"config.json names no network of diffusers: save the teacher again"):
        load_sharded_teacher(recipe)
