"""SDXL-type UNets: cross-attention on one or two CLIP encoders, pooled text and size micro-conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rmd.backbones.base import Backbone, Cond, register
from rmd.plan import Stage


@register
class SDXLBackbone(Backbone):
    """StableDiffusionXLPipeline; `Conditioning` says which sizes a low-resolution stage is told."""

    family = "sdxl"
    pipeline_classes = ("StableDiffusionXLPipeline",)
    denoiser_name = "unet"
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds", "pooled_prompt_embeds": "pooled"}
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    lora_around = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
    shard_classes = ("BasicTransformerBlock", "ResnetBlock2D")

    @property
    def size_multiple(self) -> int:
        downs = len(self.pipe.unet.config.down_block_types) - 1
        return int(self.pipe.vae_scale_factor * 2**downs)

    def encode(self, prompts: Sequence[str]) -> Cond:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return Cond({"embeds": embeds, "pooled": pooled})

    def null(self, count: int) -> Cond:
        # SDXL's own rule: the unconditional branch gets zeros, or the empty prompt where the pipeline says so
        empty = self.encode([""])
        if self.pipe.config.force_zeros_for_empty_prompt:
            empty = empty.map(torch.zeros_like)
        return empty.expand(count)

    def latent_shape(self, batch: int, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor = int(self.pipe.vae_scale_factor)
        return (batch, int(self.pipe.unet.config.in_channels), height // factor, width // factor)

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        embeds, pooled = cond.tensors["embeds"], cond.tensors["pooled"]
        original = final if self.conditioning.original == "final" else stage
        target = final if self.conditioning.target == "final" else stage
        sizes = (original.height, original.width, 0, 0, target.height, target.width)
        time_ids = torch.tensor(sizes, dtype=pooled.dtype, device=pooled.device).expand(len(cond), -1)
        return {
            "encoder_hidden_states": embeds,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids},
        }

    def features(self, network: nn.Module) -> tuple[nn.Module, int]:
        unet: Any = network
        return unet.mid_block, int(unet.config.block_out_channels[-1])

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        # the state stays in float32 between steps, also around a network in half precision
        dtype = self.pipe.unet.conv_in.weight.dtype  # `unet.dtype` walks through all modules, at every call
        output: Tensor = module(x.to(dtype), timestep, return_dict=False, **kwargs)[0]
        return output
