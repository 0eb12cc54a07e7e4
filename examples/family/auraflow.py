"""A model family: AuraFlow, a transformer with rectified flow and one T5 encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from rmd.core.plan import Stage
from rmd.models import Backbone, Cond


class AuraFlowBackbone(Backbone):
    """Wraps diffusers' AuraFlowPipeline."""

    family = "auraflow"
    pipeline_classes = ("AuraFlowPipeline",)
    denoiser_name = "transformer"
    cond_names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "embeds"}
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "out_projection")
    lora_around = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    @property
    def size_multiple(self) -> int:
        """The VAE's factor times the side of a patch."""
        return int(self.pipe.vae_scale_factor * self.pipe.transformer.config.patch_size)

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts by the pipeline's own text encoder."""
        embeds, *_ = self.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, device=self.device)
        return Cond({"embeds": embeds})

    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        """Return the network's arguments; it is not told a size."""
        return {"encoder_hidden_states": cond.tensors["embeds"]}

    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Call the network, whose times are between 0 and 1."""
        dtype = self.pipe.transformer.pos_embed.proj.weight.dtype
        embeds = kwargs["encoder_hidden_states"].to(dtype)
        return module(x.to(dtype), embeds, timestep.to(dtype) / 1000, return_dict=False)[0]
