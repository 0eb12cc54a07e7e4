"""Stable Diffusion 3 and 3.5 (MMDiT): rectified flow, two CLIP encoders and an optional T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from rmd.backbones.base import Backbone, Cond, register
from rmd.errors import RMDError
from rmd.plan import Stage


@register
class SD3Backbone(Backbone):
    """StableDiffusion3Pipeline; positions are cut from the middle of the model's own table, as it does itself."""

    family = "sd3"
    pipeline_classes = ("StableDiffusion3Pipeline",)
    denoiser_name = "transformer"
    optional_parts = ("text_encoder_3", "tokenizer_3")
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds", "pooled_prompt_embeds": "pooled"}
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip

    @property
    def size_multiple(self) -> int:
        return int(self.pipe.vae_scale_factor * self.pipe.transformer.config.patch_size)

    def encode(self, prompts: Sequence[str]) -> Cond:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.pipe._execution_device,
            do_classifier_free_guidance=False,
        )
        return Cond({"embeds": embeds, "pooled": pooled})

    def null(self, count: int) -> Cond:
        return self.encode([""]).map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def latent_shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        factor = int(self.pipe.vae_scale_factor)
        return (batch, int(self.pipe.transformer.config.in_channels), height // factor, width // factor)

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        limit = int(self.pipe.transformer.config.pos_embed_max_size) * self.size_multiple
        if max(stage.height, stage.width) > limit:
            raise RMDError(
                f"stage {stage.index} of {stage.size} pixels is larger than this model's positions reach: "
                f"choose sides of at most {limit}"
            )
        return {"encoder_hidden_states": cond.tensors["embeds"], "pooled_projections": cond.tensors["pooled"]}

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        dtype = self.pipe.transformer.pos_embed.proj.weight.dtype
        output: Tensor = module(hidden_states=x.to(dtype), timestep=timestep, return_dict=False, **kwargs)[0]
        return output
