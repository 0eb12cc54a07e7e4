"""A pipeline over the same weights: equal samples, shared memory, and an original that nothing changes."""

from __future__ import annotations

import pytest
import torch
from families import TINY
from torch import nn

from rmd.common.errors import RMDError
from rmd.models.roles import build_roles
from rmd.models.twin import twin_module, twin_pipeline


def modules(pipe: object) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_twin_has_the_same_weights_in_the_same_memory(family: str) -> None:
    pipe = TINY[family]().pipe
    twin = twin_pipeline(pipe)
    assert type(twin) is type(pipe)
    ours, theirs = modules(twin), modules(pipe)
    assert ours.keys() == theirs.keys()
    for name, module in theirs.items():
        assert ours[name] is not module
        state = module.state_dict()
        for key, tensor in ours[name].state_dict().items():
            assert tensor.data_ptr() == state[key].data_ptr() or tensor.numel() == 0, (name, key)
    assert twin.scheduler is not pipe.scheduler
    assert dict(twin.scheduler.config) == dict(pipe.scheduler.config)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_training_a_twin_leaves_the_original_as_it_was(mode: str) -> None:
    backbone = TINY["sdxl"]()
    network = backbone.denoiser
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [parameter.requires_grad for parameter in network.parameters()]
    twin = twin_module(network)
    roles = build_roles(twin, mode=mode, targets=backbone.adapted("all"), rank=2, alpha=2.0, seed=0)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in roles.trainable("student"):
            parameter.add_(1.0)
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert not hasattr(network, "peft_config")


def test_a_cast_of_the_twin_is_its_own() -> None:
    module = nn.Linear(2, 2)
    twin_module(module).to(torch.bfloat16)
    assert module.weight.dtype == torch.float32


def test_an_offloaded_pipeline_is_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0]._hf_hook = object()
    with pytest.raises(RMDError, match=r"^unet of the given pipeline is offloaded: call pipe.remove_all_hooks\(\) and"):
        twin_module(module, "unet")
