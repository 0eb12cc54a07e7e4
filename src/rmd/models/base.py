"""The Backbone protocol: what training and sampling need from a model family.

A backbone wraps an official diffusers pipeline and copies none of it. The same object serves the teacher, the student
and the fake score: they are one architecture, so `predict` takes the module that plays the role.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from rmd.common.errors import RMDError
from rmd.core.noise import NoiseSchedule, Prediction, schedule_from_config, to_x0_eps, widen
from rmd.core.plan import Stage, StepPlan
from rmd.core.sampling import guided
from rmd.models.loading import INDEX as INDEX
from rmd.models.parts import latent_rules, upcast

AdaptedLayers = Literal["all", "transformers"]
"""What adapters are put on, as `roles.layers` says."""


@dataclass(frozen=True)
class Cond:
    """Encoded prompts: named tensors whose first dimension is the batch."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Cond:
        return Cond({name: change(tensor) for name, tensor in self.tensors.items()})

    def select(self, index: Tensor | slice) -> Cond:
        """The samples at the given positions."""
        return self.map(lambda tensor: tensor[index])

    def expand(self, count: int) -> Cond:
        """A single sample as a batch of so many, without copies."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Cond:
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """Join along the batch; every part must have the same names and shapes."""
        return Cond({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


@dataclass(frozen=True)
class Conditioning:
    """Which size a network is told at a low-resolution stage, in training and in inference alike.

    original: SDXL's `original_size`. target: SDXL's `target_size`, PixArt-alpha's resolution and aspect ratio.
    pos_rescale: an experiment for SD3, whose positions are otherwise cut from the middle of its table.
    """

    original: Literal["final", "stage"] = "final"
    target: Literal["final", "stage"] = "stage"
    pos_rescale: bool = False


class Encoder(Protocol):
    """What encodes prompts: a backbone, or a cache of what it encoded."""

    def encode(self, prompts: Sequence[str]) -> Cond: ...

    def null(self, count: int) -> Cond: ...


class Backbone(ABC):
    """One model family around its official pipeline; latents are (B, C, h, w), or (B, C, T, h, w) for video.

    Sides in pixels must be multiples of `size_multiple`.
    """

    family: ClassVar[str]
    pipeline_classes: ClassVar[tuple[str, ...]]
    """Names in `model_index.json` by which `load_backbone` finds the family."""
    denoiser_name: ClassVar[str]
    """The pipeline's part that denoises: unet or transformer."""
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Allowed classes of the pipeline's parts, by the part's name; parts that are not named may be of any class."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that a pipeline folder may lack, but that diffusers wants named as None then."""
    cond_names: ClassVar[Mapping[str, str]]
    """What diffusers calls the encoded prompt's tensors, and their names in a `Cond`."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Name suffixes of the transformers' layers that adapters are put on."""
    lora_around: ClassVar[tuple[str, ...]] = ()
    """Those of the layers between the transformers."""
    moving: ClassVar[bool] = False
    """Whether the family makes videos, whose latents have a dimension of time."""
    fps: ClassVar[int] = 16
    """Frames per second at which a family's videos play, for model cards."""
    shard_classes: ClassVar[tuple[str, ...]] = ()
    """Classes of the blocks that `shard_units` finds; none: the network is gathered as a whole."""

    def __init__(self, pipe: DiffusionPipeline, conditioning: Conditioning | None = None) -> None:
        self.pipe = pipe
        self.conditioning = Conditioning() if conditioning is None else conditioning
        self._device: torch.device | None = None
        scheduler = dict(pipe.scheduler.config)
        self.schedule: NoiseSchedule = schedule_from_config(scheduler)
        self.prediction: Prediction = "flow" if self.schedule.kind == "flow" else _prediction(scheduler)

    @classmethod  # noqa: B027  # a family may have no rule of its own
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that a pipeline's networks are those of a text-to-image or text-to-video model of the family.

        Args:
            configs: the configurations of its networks, by part name.

        Raises:
            RMDError: the denoiser is of another kind; the message says which kind, and what is needed.
        """

    @property
    def denoiser(self) -> nn.Module:
        """The pipeline's denoising network."""
        network: nn.Module = getattr(self.pipe, self.denoiser_name)
        return network

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, which with offloading is not where its parts lie."""
        return self._device if self._device is not None else torch.device(self.pipe._execution_device)

    def computes_on(self, device: torch.device) -> None:
        """Say where it computes, where some of its parts lie elsewhere and the pipeline would take it from them."""
        self._device = device

    @property
    def text_encoders(self) -> list[nn.Module]:
        """The pipeline's networks that read prompts."""
        parts = self.pipe.components
        return [parts[name] for name in sorted(parts) if name.startswith("text_encoder") and parts[name] is not None]

    @classmethod
    def adapted(cls, layers: AdaptedLayers) -> tuple[str, ...]:
        """Name suffixes of the layers that adapters are put on, as `roles.layers` says."""
        return cls.lora_targets if layers == "transformers" else (*cls.lora_targets, *cls.lora_around)

    @classmethod
    def shard_units(cls, network: nn.Module) -> list[nn.Module]:
        """The blocks of a denoiser that are gathered one at a time when its weights are spread over GPUs."""
        return [module for module in network.modules() if type(module).__name__ in cls.shard_classes]

    def features(self, network: nn.Module) -> tuple[nn.Module, int]:
        """The layer in the middle of a denoiser and the width of what it gives, for an adversarial head.

        RMDError where the family has none.
        """
        raise RMDError(f"method.adversarial does not know the {self.family} network: set it to 0")

    def enable_recompute(self) -> None:
        """Turn on the denoiser's own activation checkpointing; RMDError where it has none."""
        network: Any = self.denoiser
        try:
            network.enable_gradient_checkpointing()
        except (AttributeError, ValueError) as error:
            raise RMDError(
                f"the {self.family} network cannot recompute its activations: set train.gradient_checkpointing to false"
            ) from error

    def share_tokens(self, network: nn.Module, mesh: DeviceMesh, plan: StepPlan) -> None:
        """Let processes compute one sample together, each a part of its tokens.

        Args:
            network: a denoiser of this family; afterwards every process of a group must call it with the same inputs.
            mesh: its dimension "ulysses" says which processes; "ring" is of size 1.
            plan: whose latents are to be divided.

        Raises:
            RMDError: the family cannot, or tokens or heads do not divide.
        """
        raise RMDError(f"the {self.family} network cannot divide a sample's tokens: set parallel.context_parallel to 1")

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Pixel sides must be multiples of this."""

    @property
    def frame_step(self) -> int:
        """A video has 1 + n times this many frames."""
        return 1

    def check_frames(self, frames: int) -> None:
        """RMDError unless the family makes samples of so many frames."""
        step = self.frame_step
        if not self.moving and frames != 1:
            raise RMDError(
                f"{self.family} makes single pictures, not {frames} frames: leave frames out, or set it to 1"
            )
        if self.moving and (frames < 1 or (frames - 1) % step):
            below = max((frames - 1) // step * step, 0) + 1
            raise RMDError(
                f"{self.family} makes 1 + {step} n frames, which {frames} is not: use {below} or {below + step}"
            )

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts with the pipeline's own tokenizers and encoders."""

    @abstractmethod
    def null(self, count: int) -> Cond:
        """What the teacher's unconditional branch gets, `count` times."""

    @abstractmethod
    def latent_shape(self, batch: int, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Shape of the latents of a batch of pictures of the given pixel size, or of videos of so many frames."""

    @abstractmethod
    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        """Keyword arguments of the network for a batch at a stage, micro-conditioning included."""

    @abstractmethod
    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """One network call: latents and timesteps (B,) to the raw prediction, of the latents' shape."""

    def official_options(self, frames: int) -> dict[str, Any]:
        """What a call of the official pipeline needs, beside prompt, size and steps, to do what this backbone does."""
        return {}

    def decode(self, x0: Tensor) -> Tensor:
        """Latents to images (B, 3, H, W) in [-1, 1], by the rules that the pipeline's VAE has in its config.

        A family of videos returns (B, 3, T, H, W). A VAE in float16 that overflows there (`force_upcast`) decodes in
        float32.
        """
        vae = self.pipe.vae
        scale, mean, std, shift = latent_rules(vae, x0.device)
        with upcast(vae):
            images: Tensor = vae.decode((x0.float() / scale * std + mean + shift).to(vae.dtype), return_dict=False)[0]
        return images

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to clean latents: what `decode` undoes; means of the VAE's posterior.

        RMDError from a family of videos.
        """
        if self.moving:
            raise RMDError(f"{self.family} makes clips: real images are of no use to it")
        vae = self.pipe.vae
        scale, mean, std, shift = latent_rules(vae, self.device)
        with upcast(vae):
            encoded = vae.encode(images.to(self.device, vae.dtype))
        # AutoencoderTiny has no posterior: it encodes directly to latents.
        found = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        latents: Tensor = ((found.float() - shift - mean) / std) * scale
        return latents

    def predict(
        self, module: nn.Module, x: Tensor, t: float | Tensor, kwargs: dict[str, Any], *, guidance: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """One network call read as (x0, eps), both of x's shape and at least float32.

        Args:
            module: the network that plays the role.
            x: noisy latents.
            t: a time in 0..1000, or one a sample (B,).
            kwargs: from `stage_cond`; with guidance, of the B prompts and then of the B null prompts.
            guidance: of the network's output, as the official pipelines have it; both branches run in the one call.
        """
        times = torch.as_tensor(t, dtype=torch.float64).expand(x.shape[0])
        timestep = self.schedule.model_timestep(times).to(x.device, torch.float32)
        if guidance is None:
            output = self.forward(module, x, timestep, kwargs)
        else:
            both = self.forward(module, torch.cat([x, x]), timestep.repeat(2), kwargs)
            cond, uncond = widen(both).chunk(2)
            output = guided(cond, uncond, guidance)
        return to_x0_eps(output, widen(x), self.schedule.alpha(times), self.schedule.sigma(times), self.prediction)


def _prediction(scheduler: Mapping[str, object]) -> Prediction:
    name = scheduler.get("prediction_type", "epsilon")
    if name == "epsilon":
        return "epsilon"
    if name == "v_prediction":
        return "v_prediction"
    if name == "sample":
        return "sample"
    raise RMDError(f"the scheduler's prediction_type {name!r} is not supported: use epsilon, v_prediction or sample")
