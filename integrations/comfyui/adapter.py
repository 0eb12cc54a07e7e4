"""The adapter of a LoRA student, in the names by which ComfyUI knows the layers. Needs PyTorch and safetensors only.

Training writes adapters in the layout of diffusers, whose scale is in the header of the file; `rmd export --to comfyui`
writes the layout that is needed here. Both are read, as are kohya's names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .plan import PlanError

LORA_NAME = "pytorch_lora_weights.safetensors"
DENOISERS = {"sdxl": "unet", "sd3": "transformer", "wan": "transformer"}
"""Names of the families' networks in diffusers, with which the names in their adapters begin."""
WAN_NAMES = (
    (".attn1.", ".self_attn."), (".attn2.", ".cross_attn."), (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."),
    (".to_out.0.", ".o."), (".ffn.net.0.proj.", ".ffn.0."), (".ffn.net.2.", ".ffn.2."), (".norm2.", ".norm3."),
    (".scale_shift_table", ".modulation"),
)  # fmt: skip
"""Names in the blocks of Wan: in diffusers, and in its own code."""
WAN_ENDS = (
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."), ("proj_out.", "head.head."),
    ("scale_shift_table", "head.modulation"),
)  # fmt: skip
"""The same outside of the blocks."""
_PARTS = {".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_down.weight": "down", ".lora_up.weight": "up"}


def read_adapter(path: Path, family: str) -> dict[str, Tensor]:
    """Return an adapter in ComfyUI's names, with a scale of 1.

    Args:
        path: a file of a LoRA student.
        family: "sdxl", "sd3" or "wan".

    Raises:
        PlanError: the file is not a safetensors file, or not an adapter, or holds values that are not finite.
    """
    try:
        with safe_open(path, "pt") as file:
            header, names = file.metadata() or {}, list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise PlanError(f"{path.name} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise PlanError(f"{path.name} holds values in {name} that are not finite: export the student again")
    return renamed(tensors, _scale(header, path.name), family)


def renamed(tensors: dict[str, Tensor], scale: float, family: str) -> dict[str, Tensor]:
    """Return the tensors of an adapter in ComfyUI's names, with a scale of 1.

    Args:
        tensors: the tensors by their names in the layout of diffusers, kohya or ComfyUI.
        scale: the factor of the adapter in the layout of diffusers.
        family: "sdxl", "sd3" or "wan".

    Raises:
        PlanError: a tensor is not one of an adapter.
    """
    result = {}
    for name, tensor in tensors.items():
        end = next((end for end in _PARTS if name.endswith(end)), "")
        if name.endswith(".alpha"):
            result[name] = tensor
            continue
        if not end:
            raise PlanError(f"{name} is not a tensor of a LoRA student")
        layer, part = name.removesuffix(end), _PARTS[end]
        if layer.startswith(f"{DENOISERS[family]}."):
            layer = _layer(layer.removeprefix(f"{DENOISERS[family]}."), family)
            tensor = tensor * scale if part == "up" else tensor
        result[f"{layer}.lora_{part}.weight"] = tensor
    return result


def wan_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a Wan network of diffusers by the names in Wan's own code."""
    return {_wan_name(name): tensor for name, tensor in tensors.items()}


def _layer(name: str, family: str) -> str:
    """Return ComfyUI's name of a layer of the network in diffusers."""
    if family == "sdxl":
        return "lora_unet_" + name.replace(".", "_")
    if family == "wan":
        return "diffusion_model." + _wan_name(f"{name}.").removesuffix(".")
    return f"transformer.{name}"


def _wan_name(name: str) -> str:
    if name.startswith("blocks."):
        for ours, theirs in WAN_NAMES:
            name = name.replace(ours, theirs)
        return name
    for ours, theirs in WAN_ENDS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _scale(header: dict[str, str], where: str) -> float:
    """Return the scale that the header of a file gives, alpha / rank; 1 if it gives none."""
    text = header.get("lora_adapter_metadata")
    if text is None:
        return 1.0
    try:
        values: dict[str, Any] = {name.rpartition(".")[2]: value for name, value in json.loads(text).items()}
        return float(values["lora_alpha"]) / float(values["r"])
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise PlanError(f"the header of {where} does not give the scale of the adapter: {error!r}") from error
