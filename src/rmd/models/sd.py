"""Stable Diffusion 1.5 and 2.1: UNets with cross-attention to one CLIP encoder, told neither pooled text nor sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers.utils import convert_state_dict_to_kohya
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.models.base import Architecture, Backbone, LoraLayout
from rmd.models.cond import Cond, text_to
from rmd.models.parts import check_channels, working_dtype
from rmd.models.published import CLIP_H, CLIP_L, PICTURE_VAE, Part

_OTHER_INPUTS = {
    5: "a depth-to-image model, which is given the depth of a picture",
    7: "an upscaler, which is given a small picture",
    8: "an InstructPix2Pix model, which is given a picture to edit",
    9: "an inpainting model, which is given a mask and the picture around it",
}
"""Kinds of UNet by their number of input channels."""


def kohya(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to the layout of kohya's scripts, which ComfyUI reads, too; each layer's alpha equals its rank."""
    named = {f"unet.{name}": tensor for name, tensor in state.items()}
    return dict(convert_state_dict_to_kohya(named))


def check_unet(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise RMDError unless a pipeline's UNet is given noisy latents, a time and a prompt, and nothing else."""
    unet = configs.get("unet", {})
    check_channels("UNet", unet, configs.get("vae"), _OTHER_INPUTS)
    if unet.get("time_cond_proj_dim") is not None:
        raise RMDError(
            "this UNet takes the guidance scale as an input (time_cond_proj_dim), as distilled models such as LCM "
            "do: give the model that it was distilled from"
        )


def _published(text_encoder: Part, **config: Any) -> Architecture:
    """Return an architecture whose UNet has the sizes that all versions of Stable Diffusion share."""
    shared = {
        "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    }  # fmt: skip
    return Architecture(shared | config, parts={"text_encoder": text_encoder, "vae": PICTURE_VAE})


class StableDiffusionBackbone(Backbone):
    """StableDiffusionPipeline. A safety checker is loaded and saved with it, but not applied to pictures."""

    family = "sd"
    pipeline_classes = ("StableDiffusionPipeline",)
    denoiser_name = "unet"
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    }
    optional_parts = ("safety_checker", "feature_extractor", "image_encoder")
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds"}
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    lora_around = (
        "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv",
        "upsamplers.0.conv",
    )  # fmt: skip
    lora_layouts: ClassVar[Mapping[str, LoraLayout]] = {"kohya": kohya, "comfyui": kohya}
    shard_classes = ("BasicTransformerBlock", "ResnetBlock2D")
    runs_alone = True
    architectures: ClassVar[Mapping[str, Architecture]] = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": _published(
            CLIP_L, sample_size=64, cross_attention_dim=768, attention_head_dim=8
        ),
        "stabilityai/stable-diffusion-2-1": _published(
            CLIP_H, sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
    }  # fmt: skip

    @classmethod
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        check_unet(configs)
        more = [key for key in ("addition_embed_type", "class_embed_type") if configs.get("unet", {}).get(key)]
        if more:
            raise RMDError(
                f"this UNet is given more than a prompt ({more[0]}), which Stable Diffusion 1.5 and 2.1 are not: give "
                "a text-to-image model of theirs"
            )

    @classmethod
    def cond_shapes(cls, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        return {"embeds": (architecture.text_length, architecture.config["cross_attention_dim"])}

    @property
    def size_multiple(self) -> int:
        downs = len(self.pipe.unet.config.down_block_types) - 1
        return int(self.pipe.vae_scale_factor * 2**downs)

    def encode(self, prompts: Sequence[str]) -> Cond:
        embeds, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, False)
        return Cond({"embeds": embeds})

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        return {"encoder_hidden_states": cond.tensors["embeds"]}

    def features(self, network: nn.Module) -> tuple[nn.Module, int]:
        unet: Any = network
        return unet.mid_block, int(unet.config.block_out_channels[-1])

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        dtype = working_dtype(module, self.pipe.unet.conv_in.weight)
        output: Tensor = module(x.to(dtype), timestep, return_dict=False, **text_to(kwargs, dtype))[0]
        return output
