"""A model family: Stable Diffusion 1.5 and 2.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from rmd.core.plan import Stage
from rmd.models import Backbone, Cond


class StableDiffusionBackbone(Backbone):
    """Wraps diffusers' StableDiffusionPipeline."""

    family = "sd"
    pipeline_classes = ("StableDiffusionPipeline",)
    denoiser_name = "unet"
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds"}
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    lora_around = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")

    @property
    def size_multiple(self) -> int:
        """The VAE's factor times the halvings of the UNet."""
        return int(self.pipe.vae_scale_factor * 2 ** (len(self.pipe.unet.config.down_block_types) - 1))

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts by the pipeline's own text encoder."""
        embeds, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, False)
        return Cond({"embeds": embeds})

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        """Return the network's arguments; it is not told a size."""
        return {"encoder_hidden_states": cond.tensors["embeds"]}

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Call the network."""
        return module(x.to(self.pipe.unet.conv_in.weight.dtype), timestep, return_dict=False, **kwargs)[0]
