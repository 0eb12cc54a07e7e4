"""A second pipeline over the same weights, whose modules training may wrap, move or cast without touching the first."""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from rmd.common.errors import RMDError


def twin_pipeline(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Return a pipeline of the same class whose modules are copies that share the memory of the given one's weights.

    Adapters that are added to the copy, and moves and casts of it, do not affect the original: a move or a cast gives
    the copy memory of its own. Tokenizers, which nothing changes, are the same objects; the scheduler is a copy.

    Raises:
        RMDError: a module is offloaded by accelerate, so that its weights are not where they seem to be.
    """
    parts: dict[str, Any] = {}
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            parts[name] = twin_module(part, name)
        elif name == "scheduler":
            parts[name] = copy.deepcopy(part)
        else:
            parts[name] = part
    settings = {name: pipe.config[name] for name in signature(type(pipe)).parameters if name in pipe.config}
    twin = type(pipe)(**settings | parts)
    twin.register_to_config(_name_or_path=pipe.config.get("_name_or_path"))
    return twin


def twin_module(module: nn.Module, name: str = "the network") -> nn.Module:
    """Return a copy of a module with parameters and buffers of its own that share the original's memory.

    Raises:
        RMDError: the module is offloaded by accelerate.
    """
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        raise RMDError(
            f"{name} of the given pipeline is offloaded: call pipe.remove_all_hooks() and move the "
            "pipeline to its device"
        )
    shared: dict[int, Any] = {}
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter:
            shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        else:  # quantised weights carry state beside the tensor; they are frozen, so that both may hold them
            shared[id(parameter)] = parameter
    for buffer in module.buffers():
        shared[id(buffer)] = buffer.detach()
    return copy.deepcopy(module, shared)
