"""Networks that student and fake score cannot be made from are refused."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from rmd.common.errors import RMDError
from rmd.models.roles import build_roles

Mode = Literal["lora", "full"]
both_modes = pytest.mark.parametrize("mode", ["lora", "full"])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"to_q": nn.Linear(4, 4)}))


def trained(denoiser: nn.Module, mode: Mode) -> None:
    build_roles(denoiser, mode=mode, targets=["to_q"], rank=2, alpha=2.0)


@both_modes
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by imports of torch.compile
def test_a_network_that_is_compiled_or_carries_an_adapter_is_refused(mode: Mode) -> None:
    with pytest.raises(RMDError, match=r"^the teacher's network is compiled \(torch\.compile\)"):
        trained(torch.compile(network()), mode)  # type: ignore[arg-type]  # a module, whatever its annotation
    styled = network()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), styled, adapter_name="style")
    with pytest.raises(RMDError, match=r"^the teacher's network carries an adapter \(style\): merge it with pipe"):
        trained(styled, mode)


def test_a_quantised_network_is_refused_if_it_cannot_be_trained() -> None:
    packed = network()
    layer = packed[1]["to_q"]  # type: ignore[index]  # a sequence of modules
    layer.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(RMDError, match=r"^the teacher's weights are quantised \(1\.to_q\.weight\), and roles"):
        trained(packed, "full")
    with pytest.raises(RMDError, match=r"^the teacher's weight 1\.to_q\.weight is stored as integers"):
        trained(packed, "lora")


def test_a_network_without_layers_for_adapters_is_refused() -> None:
    with pytest.raises(RMDError, match=r"^adapters cannot be put on the teacher's network: "):
        trained(nn.Sequential(nn.Linear(2, 2)), "lora")


def test_tensors_of_quantising_libraries_are_recognised_by_their_class() -> None:
    class Packed(nn.Parameter):
        pass

    packed = network()
    packed[1]["to_q"].weight = Packed(torch.zeros(4, 4))  # type: ignore[index]  # a sequence of modules
    trained(packed, "full")
    Packed.__module__ = "torchao.quantization"
    with pytest.raises(RMDError, match=r"^the teacher's weights are quantised \(1\.to_q\.weight\)"):
        trained(packed, "full")
