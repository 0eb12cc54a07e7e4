"""SDXL: UNets with cross-attention to one or two CLIP encoders, pooled text, and micro-conditioning on sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.models.base import Architecture, Backbone, LoraLayout
from rmd.models.cond import Cond, text_to
from rmd.models.parts import number, working_dtype
from rmd.models.published import CLIP_G_POOLED, CLIP_L, PICTURE_VAE
from rmd.models.sd import check_unet, kohya


class SDXLBackbone(Backbone):
    """StableDiffusionXLPipeline. `Conditioning` chooses the sizes that it is given at low-resolution stages."""

    family = "sdxl"
    pipeline_classes = ("StableDiffusionXLPipeline",)
    denoiser_name = "unet"
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
    }
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds", "pooled_prompt_embeds": "pooled"}
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    lora_around = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
    lora_layouts: ClassVar[Mapping[str, LoraLayout]] = {"kohya": kohya, "comfyui": kohya}
    shard_classes = ("BasicTransformerBlock", "ResnetBlock2D")
    runs_alone = True
    architectures: ClassVar[Mapping[str, Architecture]] = {
        "stabilityai/stable-diffusion-xl-base-1.0": Architecture(
            {
                "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280),
                "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
            },
            parts={"text_encoder": CLIP_L, "text_encoder_2": CLIP_G_POOLED, "vae": PICTURE_VAE},
        ),
    }  # fmt: skip

    @classmethod
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        unet, second = configs.get("unet"), configs.get("text_encoder_2")
        if unet is None:
            return
        check_unet(configs)
        if unet.get("addition_embed_type") != "text_time" or unet.get("encoder_hid_dim_type") is not None:
            raise RMDError(
                "this UNet does not take the pooled text and the picture's size as SDXL's does (addition_embed_type "
                f"{unet.get('addition_embed_type')}, encoder_hid_dim_type {unet.get('encoder_hid_dim_type')}): give an "
                "SDXL text-to-image model"
            )
        pooled = None if second is None else number(second, "projection_dim")
        each = number(unet, "addition_time_embed_dim")
        expected = number(unet, "projection_class_embeddings_input_dim")
        if pooled is None or each is None or expected is None:
            return
        if expected == pooled + 5 * each:
            raise RMDError(
                "this UNet is SDXL's refiner, which is given an aesthetic score and improves pictures: give the base "
                "model"
            )
        if expected != pooled + 6 * each:
            raise RMDError(
                f"this UNet expects {expected} values of pooled text and sizes "
                f"(projection_class_embeddings_input_dim), but its pipeline gives {pooled} + 6 x {each}: "
                "give an SDXL text-to-image model"
            )

    @classmethod
    def cond_shapes(cls, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        config = architecture.config
        # six sizes are embedded beside the pooled text
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return {"embeds": (architecture.text_length, config["cross_attention_dim"]), "pooled": (pooled,)}

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
        # SDXL's own rule: the unconditional branch is given zeros if the pipeline says so, and else the empty prompt
        empty = self.encode([""])
        if self.pipe.config.force_zeros_for_empty_prompt:
            empty = empty.map(torch.zeros_like)
        return empty.expand(count)

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
        # Between steps the state stays in float32, even if the network computes in half precision.
        dtype = working_dtype(module, self.pipe.unet.conv_in.weight)
        given = text_to(kwargs, dtype)
        output: Tensor = module(x.to(dtype), timestep, return_dict=False, **given)[0]
        return output
