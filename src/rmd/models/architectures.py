"""Full-size denoisers without weights: the public configurations, built on the meta device, counted and measured.

Nothing here needs memory, an accelerator or the Hub. FLOPs are twice the multiply-accumulates, of one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, WanTransformer3DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rmd.common.errors import RMDError
from rmd.common.files import user_path
from rmd.models.hub import read_object

_CLASSES = {
    "sdxl": UNet2DConditionModel, "pixart": PixArtTransformer2DModel, "sd3": SD3Transformer2DModel,
    "wan": WanTransformer3DModel,
}  # fmt: skip
_PIXART = {
    "sample_size": 128, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
    "out_channels": 8, "cross_attention_dim": 1152, "caption_channels": 4096, "patch_size": 2, "interpolation_scale": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A denoiser's class and configuration, and what it is given beside the latents."""

    family: str
    config: dict[str, Any]
    vae_factor: int = 8
    text_length: int = 77
    frame_factor: int = 4
    """Of a video's VAE, in time."""

    def build(self, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
        """The network on the meta device."""
        try:
            with torch.device("meta"):
                network: nn.Module = _CLASSES[self.family](**self.config)
        except (TypeError, ValueError, KeyError) as error:
            raise RMDError(f"the configuration of this {self.family} denoiser does not build one: {error}") from error
        return nn.Module.to(network, dtype)  # diffusers' own warns of modules that no configuration here has

    def cond_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one encoded prompt's tensors, by their names in a `Cond`."""
        c, text = self.config, self.text_length
        if self.family == "sdxl":
            pooled = c["projection_class_embeddings_input_dim"] - 6 * c["addition_time_embed_dim"]
            return {"embeds": (text, c["cross_attention_dim"]), "pooled": (pooled,)}
        if self.family == "pixart":
            return {"embeds": (text, c["caption_channels"]), "mask": (text,)}
        if self.family == "wan":
            return {"embeds": (text, c["text_dim"])}
        return {"embeds": (text, c["joint_attention_dim"]), "pooled": (c["pooled_projection_dim"],)}

    def inputs(
        self, height: int, width: int, *, frames: int = 1, batch: int = 1, dtype: torch.dtype = torch.bfloat16
    ) -> dict[str, Any]:
        """Keyword arguments of one forward pass at a picture size (and length), on the meta device."""
        c = self.config

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, device="meta", dtype=dtype)

        sides = (height // self.vae_factor, width // self.vae_factor)
        length = ((frames - 1) // self.frame_factor + 1,) if self.family == "wan" else ()
        latents = zeros(c["in_channels"], *length, *sides)
        time = torch.zeros(batch, device="meta")
        cond = {name: zeros(*shape) for name, shape in self.cond_shapes().items()}
        text = cond["embeds"]
        if self.family == "sdxl":
            added = {"text_embeds": cond["pooled"], "time_ids": zeros(6)}
            return {"sample": latents, "timestep": time, "encoder_hidden_states": text, "added_cond_kwargs": added}
        if self.family == "pixart":
            told = c.get("use_additional_conditions", c["sample_size"] == 128)
            sizes = {"resolution": zeros(2) if told else None, "aspect_ratio": zeros(1) if told else None}
            return {
                "hidden_states": latents, "timestep": time, "encoder_hidden_states": text,
                "encoder_attention_mask": cond["mask"], "added_cond_kwargs": sizes,
            }  # fmt: skip
        if self.family == "wan":
            return {"hidden_states": latents, "timestep": time, "encoder_hidden_states": text}
        pooled = cond["pooled"]
        return {"hidden_states": latents, "timestep": time, "encoder_hidden_states": text, "pooled_projections": pooled}


def _wan(*, heads: int, layers: int, ffn: int) -> Architecture:
    config = {
        "num_attention_heads": heads, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16,
        "text_dim": 4096, "freq_dim": 256, "ffn_dim": ffn, "num_layers": layers, "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024, "patch_size": (1, 2, 2),
    }  # fmt: skip
    return Architecture("wan", config, text_length=512)


PUBLIC: dict[str, Architecture] = {
    "stabilityai/stable-diffusion-xl-base-1.0": Architecture(
        "sdxl",
        {
            "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280),
            "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "PixArt-alpha/PixArt-XL-2-1024-MS": Architecture("pixart", _PIXART, text_length=120),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": Architecture(
        "pixart", _PIXART | {"use_additional_conditions": False}, text_length=300
    ),
    "stabilityai/stable-diffusion-3.5-medium": Architecture(
        "sd3",
        {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
            "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
        },
        text_length=333,
    ),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(heads=40, layers=40, ffn=13824),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(heads=12, layers=30, ffn=8960),
}  # fmt: skip
"""By the teachers' names on the Hub, from the config files that are published with them."""


def architecture_of(teacher: str | Path, family: str) -> Architecture:
    """A teacher's denoiser: known by name, or read from its folder; RMDError where it is neither."""
    if str(teacher) in PUBLIC and not Path(teacher).exists():
        return PUBLIC[str(teacher)]
    part = "unet" if family == "sdxl" else "transformer"
    teacher = user_path(str(teacher))
    path = teacher / part / "config.json"
    if family not in _CLASSES or not path.is_file():
        raise RMDError(
            f"nothing is known of the size of {teacher}: give the folder of an {', '.join(_CLASSES)} pipeline, or one "
            f"of {', '.join(PUBLIC)}"
        )
    config = {key: value for key, value in read_object(path).items() if not key.startswith("_")}
    place = teacher / "vae" / "config.json"
    vae = read_object(place)
    try:
        if family == "wan":
            factors = int(vae["scale_factor_spatial"]), int(vae["scale_factor_temporal"])
            return Architecture(family, config, vae_factor=factors[0], text_length=512, frame_factor=factors[1])
        return Architecture(family, config, vae_factor=2 ** (len(vae["block_out_channels"]) - 1))
    except (KeyError, TypeError, ValueError) as error:
        raise RMDError(f"{place} does not say by how much the VAE makes pictures smaller ({error})") from error


def parameters(network: nn.Module) -> int:
    """Numbers that can be trained (tables of positions are buffers)."""
    return sum(p.numel() for p in network.parameters())


def adapter_parameters(network: nn.Module, targets: tuple[str, ...], rank: int) -> int:
    """Numbers of one LoRA on the linear layers and convolutions whose names end so."""
    ends = tuple(f".{target}" for target in targets)
    layers = (m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and name.endswith(ends))
    return sum(rank * (layer.weight[0].numel() + len(layer.weight)) for layer in layers)


def forward_flops(architecture: Architecture, network: nn.Module, height: int, width: int, frames: int = 1) -> int:
    """FLOPs of one forward pass of one picture or video, without guidance."""
    with _size_errors(height, width), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(**architecture.inputs(height, width, frames=frames))
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass of one sample: all of them, or with every block's recomputed (`recompute`)."""

    whole: int
    recomputed: int
    """What lies outside the blocks, the blocks' inputs, and the inside of the largest block."""


def activation_bytes(
    architecture: Architecture, network: nn.Module, units: Sequence[nn.Module], height: int, width: int, frames: int = 1
) -> Activations:
    """Activations of one forward pass; attention keeps no scores (flash).

    Args:
        units: the network's blocks, as a backbone's `shard_units` finds them.
    """
    weights = {id(p) for p in network.parameters()} | {p.untyped_storage()._cdata for p in network.parameters()}
    # the tensors are held, so that no address is used twice
    outside: dict[int, Tensor] = {}
    inputs: dict[int, Tensor] = {}
    inside: list[dict[int, Tensor]] = []
    current = outside

    def keep(where: dict[int, Tensor], tensor: Tensor) -> None:
        address = tensor.untyped_storage()._cdata
        if address not in weights:
            where.setdefault(address, tensor)

    def pack(tensor: Tensor) -> Tensor:
        keep(current, tensor)
        return tensor

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal current
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                keep(inputs, value)
        inside.append({})
        current = inside[-1]

    def leave(*_: Any) -> None:
        nonlocal current
        current = outside

    handles = [unit.register_forward_pre_hook(enter, with_kwargs=True) for unit in units]
    handles += [unit.register_forward_hook(leave) for unit in units]
    saved = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with _size_errors(height, width), _flash_attention(), saved:
        network.requires_grad_(True)
        output = network(**architecture.inputs(height, width, frames=frames), return_dict=False)[0]
        del output
    for handle in handles:
        handle.remove()

    def size(*parts: dict[int, Tensor]) -> int:
        together = {address: tensor for part in parts for address, tensor in part.items()}
        return sum(tensor.untyped_storage().nbytes() for tensor in together.values())

    largest = max((size(part) for part in inside), default=0)
    return Activations(size(outside, *inside), size(outside, inputs) + largest)


@contextmanager
def _size_errors(height: int, width: int) -> Iterator[None]:
    """Raise RMDError in place of what diffusers raises if a network cannot take pictures of a size."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise RMDError(f"this network does not work at {height}x{width} pixels: {error}") from error


class _Flash(torch.autograd.Function):
    """What flash attention keeps for its backward pass: inputs, output and one number a row. It has none: it counts."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty(*query.shape[:-1], value.shape[-1], device=query.device, dtype=query.dtype)
        rows = torch.empty(query.shape[:-1], device=query.device, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, rows)
        return output


@contextmanager
def _flash_attention() -> Iterator[None]:
    """On the meta device torch spells attention out, and would keep its scores."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = _Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
        return result

    usual = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual
