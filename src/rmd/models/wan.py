"""Wan2.1 text-to-video: a diffusion transformer over space and time, rectified flow, one UMT5 encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, ContextParallelConfig, DiffusionPipeline
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from rmd.common.errors import RMDError
from rmd.core.plan import Stage, StepPlan
from rmd.models.base import Architecture, Backbone, Conditioning, LoraLayout
from rmd.models.cond import Cond, text_to
from rmd.models.parts import check_channels, working_dtype
from rmd.models.published import UMT5_XXL, WAN_VAE

MAX_TOKENS = 512
"""Tokens of an encoded prompt, as in the official pipeline; shorter prompts are padded with zeros, as in training."""

_PIPELINE_MULTIPLE = 16
"""The official pipeline accepts only sides that are multiples of this, whatever its VAE."""
_ORIGINAL_NAMES = (
    (".attn1.", ".self_attn."), (".attn2.", ".cross_attn."), (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."),
    (".to_out.0.", ".o."), (".ffn.net.0.proj.", ".ffn.0."), (".ffn.net.2.", ".ffn.2."),
)  # fmt: skip
"""Parts of the layers' names in diffusers, and in Wan's own code."""

_TWO_EXPERTS = (
    "this is a Wan2.2 pipeline with two experts, one for high and one for low noise, which are two teachers: "
    "give a Wan2.1 text-to-video pipeline"
)


def _comfyui(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of ComfyUI, which knows the layers by the names in Wan's own code."""
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in _ORIGINAL_NAMES:
            name = name.replace(ours, theirs)
        renamed[f"diffusion_model.{name}"] = tensor
    return renamed


def _published(*, heads: int, layers: int, ffn: int) -> Architecture:
    """Return the architecture of a published Wan2.1 text-to-video model."""
    config = {
        "num_attention_heads": heads, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16,
        "text_dim": 4096, "freq_dim": 256, "ffn_dim": ffn, "num_layers": layers, "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024, "patch_size": (1, 2, 2),
    }  # fmt: skip
    parts = {"text_encoder": UMT5_XXL, "vae": WAN_VAE}
    return Architecture(config, text_length=MAX_TOKENS, frame_factor=4, parts=parts)


class WanBackbone(Backbone):
    """WanPipeline. Latents are (B, C, T, h, w), of which only h and w change between stages.

    The VAE encodes 1 + 4 n frames as 1 + n latent frames. Positions are rotary, and start at the top left corner at
    every size.
    """

    family = "wan"
    pipeline_classes = ("WanPipeline",)
    denoiser_name = "transformer"
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("WanTransformer3DModel",),
        "vae": ("AutoencoderKLWan",),
        "text_encoder": ("UMT5EncoderModel",),
    }
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds"}
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    moving = True
    runs_alone = True
    lora_layouts: ClassVar[Mapping[str, LoraLayout]] = {"comfyui": _comfyui}
    shard_classes = ("WanTransformerBlock",)
    architectures: ClassVar[Mapping[str, Architecture]] = {
        "Wan-AI/Wan2.1-T2V-14B-Diffusers": _published(heads=40, layers=40, ffn=13824),
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _published(heads=12, layers=30, ffn=8960),
    }

    def __init__(self, pipe: DiffusionPipeline, conditioning: Conditioning | None = None) -> None:
        """Raise RMDError for models of Wan2.2, which have two experts or take a separate time for each token."""
        if pipe.transformer is None or pipe.transformer_2 is not None or pipe.config.boundary_ratio is not None:
            raise RMDError(_TWO_EXPERTS)
        if pipe.config.expand_timesteps:
            raise RMDError("this Wan2.2 pipeline gives each token its own time: give a Wan2.1 text-to-video pipeline")
        super().__init__(pipe, conditioning)

    @classmethod
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        if "transformer_2" in configs:
            raise RMDError(_TWO_EXPERTS)
        wan = configs.get("transformer", {})
        if wan.get("image_dim") is not None or wan.get("added_kv_proj_dim") is not None:
            raise RMDError(
                "this transformer is given a first picture (image_dim, added_kv_proj_dim), as image-to-video models "
                "are: give a Wan2.1 text-to-video model"
            )
        check_channels(
            "transformer", wan, configs.get("vae"),
            {36: "an image-to-video model, which is given a picture to begin with and a mask"},
        )  # fmt: skip

    @classmethod
    def architecture_from(cls, config: Mapping[str, Any], vae: Mapping[str, Any]) -> Architecture:
        space, time = int(vae["scale_factor_spatial"]), int(vae["scale_factor_temporal"])
        return Architecture(config, vae_factor=space, text_length=MAX_TOKENS, frame_factor=time)

    @classmethod
    def cond_shapes(cls, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        return {"embeds": (architecture.text_length, architecture.config["text_dim"])}

    @classmethod
    def small_vae(cls, architecture: Architecture) -> nn.Module:
        levels = architecture.vae_factor.bit_length()
        vae: nn.Module = AutoencoderKLWan(
            base_dim=4, z_dim=architecture.config["in_channels"], dim_mult=[1] * levels, num_res_blocks=1,
            temperal_downsample=[False] + [True] * (levels - 2),
            scale_factor_temporal=architecture.frame_factor, scale_factor_spatial=architecture.vae_factor,
        )  # fmt: skip
        return vae

    @property
    def size_multiple(self) -> int:
        patch = int(self.pipe.transformer.config.patch_size[1])
        return math.lcm(_PIPELINE_MULTIPLE, int(self.pipe.vae_scale_factor_spatial) * patch)

    @property
    def frame_step(self) -> int:
        return int(self.pipe.vae_scale_factor_temporal)

    def encode(self, prompts: Sequence[str]) -> Cond:
        embeds, _ = self.pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self._tokens,
            device=self.device,
        )
        return Cond({"embeds": embeds})

    def latent_shape(self, batch: int, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        factor, length = int(self.pipe.vae_scale_factor_spatial), (frames - 1) // self.frame_step + 1
        return (batch, int(self.pipe.transformer.config.in_channels), length, height // factor, width // factor)

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        return {"encoder_hidden_states": cond.tensors["embeds"]}

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        # its norms and time embeddings stay in float32
        dtype = working_dtype(module, self.pipe.transformer.patch_embedding.weight)
        given = text_to(kwargs, dtype)
        output: Tensor = module(hidden_states=x.to(dtype), timestep=timestep, return_dict=False, **given)[0]
        return output

    def share_tokens(self, network: nn.Module, mesh: DeviceMesh, plan: StepPlan) -> None:
        config, count = self.pipe.transformer.config, int(mesh["ulysses"].size())
        heads = config.num_attention_heads
        if heads % count:
            raise RMDError(
                f"{heads} attention heads cannot be divided among {count} processes: change parallel.context_parallel"
            )
        for stage in plan.stages:
            shape = self.latent_shape(1, stage.height, stage.width, plan.frames)[2:]
            tokens = math.prod(side // patch for side, patch in zip(shape, config.patch_size, strict=True))
            if tokens % count:
                raise RMDError(
                    f"the {tokens} tokens of a sample of {stage.height}x{stage.width} cannot be divided among {count} "
                    "processes: change parallel.context_parallel, plan.sides or frames"
                )
        wan: Any = network
        wan.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count, mesh=mesh))

    def official_options(self, frames: int) -> dict[str, Any]:
        return {"num_frames": frames, "max_sequence_length": self._tokens, "output_type": "pil"}

    @property
    def _tokens(self) -> int:
        return int(min(MAX_TOKENS, self.pipe.tokenizer.model_max_length))

    def decode(self, x0: Tensor) -> Tensor:
        """Decode clean latents, normalised per channel, to videos (B, 3, T, H, W) in [-1, 1]."""
        vae = self.pipe.vae
        mean, std = (
            torch.tensor(values, dtype=vae.dtype, device=x0.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        videos: Tensor = vae.decode(x0.to(vae.dtype) * std + mean, return_dict=False)[0]
        return videos
