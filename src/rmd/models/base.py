"""The Backbone protocol: what training and sampling need to know of a model family, and `Cond`, its encoded prompts.

A backbone wraps an official diffusers pipeline and copies no code of it. Teacher, student and fake score have one
architecture, so that one backbone serves all three: `forward` and `predict` take the network that plays the role.

Every fact of a family is stated in its subclass, so that a new family is one new file. See docs/backbones.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from rmd.common.errors import RMDError, one_of
from rmd.core.noise import NoiseSchedule, Prediction, schedule_from_config, to_x0_eps, widen
from rmd.core.plan import Stage, StepPlan
from rmd.core.sampling import guided
from rmd.models.parts import latent_rules, upcast
from rmd.models.published import Part
from rmd.recipes.groups import ConditioningConfig

Conditioning = ConditioningConfig
AdaptedLayers = Literal["all", "transformers"]
"""Choice of the layers that receive adapters: the recipe key `roles.layers`."""
LoraLayout: TypeAlias = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Renames an adapter's tensors from their names in the denoiser to those in another program's file."""


@dataclass(frozen=True)
class Cond:
    """Encoded prompts: named tensors whose first dimension is the batch.

    A tensor named "mask" (B, tokens) is 1 where a token is read and 0 where it is padding.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Cond:
        """Apply a function to every tensor."""
        return Cond({name: change(tensor) for name, tensor in self.tensors.items()})

    def expand(self, count: int) -> Cond:
        """Repeat a single sample `count` times along the batch, without copying it."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Cond:
        """Move all tensors to a device, and cast those with floating-point values to a dtype if one is given."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """Concatenate along the batch; all parts must have the same names, and the same shapes but for the batch."""
        return Cond({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


class Encoder(Protocol):
    """Something that encodes prompts: a backbone, or a cache of prompts that were encoded earlier."""

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts; the batch of the result is their number."""
        ...

    def null(self, count: int) -> Cond:
        """Return what the teacher's unconditional branch is given, `count` times."""
        ...


@dataclass(frozen=True)
class Architecture:
    """The sizes of a teacher, without its weights.

    Attributes:
        config: the denoiser's configuration, as its diffusers class takes it.
        vae_factor: pixels per latent along each side.
        text_length: tokens of an encoded prompt.
        frame_factor: frames per latent frame; 1 for families of pictures.
        parts: classes and configurations of the pipeline's other networks, by part; empty if they are unknown.
    """

    config: Mapping[str, Any]
    vae_factor: int = 8
    text_length: int = 77
    frame_factor: int = 1
    parts: Mapping[str, Part] = field(default_factory=dict)


class Backbone(ABC):
    """One model family around its official pipeline.

    Latents are (B, C, h, w), or (B, C, T, h, w) for videos. Sides in pixels must be multiples of `size_multiple`.
    """

    family: ClassVar[str]
    """Name of the family, as in the recipe key `family`."""
    pipeline_classes: ClassVar[tuple[str, ...]]
    """Names of the pipeline classes in `model_index.json` that belong to the family."""
    denoiser_name: ClassVar[str]
    """Name of the pipeline's denoising network: "unet" or "transformer"."""
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Names of the classes that each part of the pipeline may have; a part that is not listed may have any class.

    Of the denoiser's, the first is the class in diffusers and the others are its earlier names.
    """
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that a pipeline folder may lack; diffusers then needs them to be given as None."""
    cond_names: ClassVar[Mapping[str, str]]
    """For each tensor of an encoded prompt, the name of diffusers' argument and the name in a `Cond`."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Name suffixes of the layers inside the transformer blocks that receive adapters."""
    lora_around: ClassVar[tuple[str, ...]] = ()
    """Name suffixes of the layers outside the transformer blocks that receive adapters."""
    lora_layouts: ClassVar[Mapping[str, LoraLayout]] = {}
    """Layouts of adapter files for other programs, "kohya" and "comfyui"; without one, ComfyUI reads diffusers' own."""
    moving: ClassVar[bool] = False
    """True if the family generates videos, whose latents have a time dimension."""
    fps: ClassVar[int] = 16
    """Frames per second at which the family's videos play, for model cards."""
    runs_alone: ClassVar[bool] = False
    """True if `rmd.models.standalone` runs the family's students: its official pipeline takes latents of any size."""
    rescales_positions: ClassVar[bool] = False
    """True if the family implements `Conditioning.pos_rescale`."""
    shard_classes: ClassVar[tuple[str, ...]] = ()
    """Class names of the blocks that `shard_units` returns; if empty, the network is gathered as a whole."""
    architectures: ClassVar[Mapping[str, Architecture]] = {}
    """Published teachers by their repositories on the Hub, for arithmetic that needs no weights."""

    def __init__(self, pipe: DiffusionPipeline, conditioning: Conditioning | None = None) -> None:
        self.pipe = pipe
        self.conditioning = Conditioning() if conditioning is None else conditioning
        self._device: torch.device | None = None
        scheduler = dict(pipe.scheduler.config)
        self.schedule: NoiseSchedule = schedule_from_config(scheduler)
        self.prediction: Prediction = "flow" if self.schedule.kind == "flow" else _prediction(scheduler)

    # What a family must define.

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Number that both sides of a picture, in pixels, must be multiples of."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts with the pipeline's own tokenizers and text encoders."""

    @abstractmethod
    def stage_cond(self, cond: Cond, stage: Stage, final: Stage) -> dict[str, Any]:
        """Return the network's keyword arguments for a batch of prompts at a stage, micro-conditioning included.

        Args:
            final: the stage whose size the finished picture has.
        """

    @abstractmethod
    def forward(self, module: nn.Module, x: Tensor, timestep: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Call a network once, and return its raw prediction in the shape of the latents.

        Args:
            module: the network that plays the role.
            x: noisy latents.
            timestep: the scheduler's timesteps, (B,).
            kwargs: from `stage_cond`.
        """

    # What a family may define.

    @classmethod  # noqa: B027  # a family may have nothing to check
    def check_network(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that a pipeline's networks are those of a text-to-image or text-to-video model of the family.

        Args:
            configs: the configurations of its networks, by part name.

        Raises:
            RMDError: the denoiser is of another kind; the message says which kind, and what is needed.
        """

    def null(self, count: int) -> Cond:
        """Return what the teacher's unconditional branch is given, `count` times: by default the empty prompt."""
        return self.encode([""]).expand(count)

    def latent_shape(self, batch: int, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Return the shape of the latents of pictures of a size in pixels, or of videos with that many frames."""
        factor = int(self.pipe.vae_scale_factor)
        network: Any = self.denoiser
        return (batch, int(network.config.in_channels), height // factor, width // factor)

    @property
    def frame_step(self) -> int:
        """Videos have 1 + n x `frame_step` frames."""
        return 1

    def official_options(self, frames: int) -> dict[str, Any]:
        """Return the options, beyond prompt, size and steps, that make the official pipeline equal to this backbone."""
        return {}

    def features(self, network: nn.Module) -> tuple[nn.Module, int]:
        """Return the hidden layer that an adversarial head reads, and the number of its output channels.

        If the layer returns several tensors, the last must be that of the picture.

        Args:
            network: a denoiser of this family.

        Raises:
            RMDError: the family does not name a layer.
        """
        raise RMDError(f"method.adversarial does not support the family {self.family}: set it to 0")

    def share_tokens(self, network: nn.Module, mesh: DeviceMesh, plan: StepPlan) -> None:
        """Make several processes compute one sample together, each on a part of its tokens.

        Args:
            network: a denoiser of this family; afterwards all processes of a group must call it with the same inputs.
            mesh: its dimension "ulysses" contains the processes of a group; its dimension "ring" has size 1.
            plan: the plan with the sizes of the latents that are divided.

        Raises:
            RMDError: the family does not support it, or the tokens or attention heads do not divide evenly.
        """
        raise RMDError(
            f"the {self.family} network cannot divide a sample between GPUs: set parallel.context_parallel to 1"
        )

    @classmethod
    def architecture_from(cls, config: Mapping[str, Any], vae: Mapping[str, Any]) -> Architecture:
        """Return a teacher's architecture from the configurations in its folder.

        Args:
            config: the denoiser's configuration.
            vae: the VAE's configuration.

        Raises:
            KeyError, TypeError, ValueError: the VAE's configuration does not give its scale factors.
        """
        return Architecture(config, vae_factor=2 ** (len(vae["block_out_channels"]) - 1))

    @classmethod
    def cond_shapes(cls, architecture: Architecture) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one encoded prompt's tensors, without the batch, by their names in a `Cond`.

        Raises:
            RMDError: the family does not declare them; only estimates and timing without weights need them.
        """
        raise RMDError(f"the family {cls.family} does not declare the sizes of its encoded prompts (`cond_shapes`)")

    @classmethod
    def small_vae(cls, architecture: Architecture) -> nn.Module:
        """Return a VAE with few weights, all random, whose latents have the sizes of the real VAE's."""
        levels = architecture.vae_factor.bit_length()
        vae: nn.Module = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(8,) * levels,
            latent_channels=architecture.config["in_channels"],
            norm_num_groups=4,
            mid_block_add_attention=False,
        )
        return vae

    # What all families share.

    @property
    def denoiser(self) -> nn.Module:
        """The pipeline's denoising network."""
        network: nn.Module = getattr(self.pipe, self.denoiser_name)
        return network

    @property
    def device(self) -> torch.device:
        """The device on which the pipeline computes; with offloading, its parts may be stored on another."""
        return self._device if self._device is not None else torch.device(self.pipe._execution_device)

    def computes_on(self, device: torch.device) -> None:
        """Set `device`, for a pipeline some of whose parts are stored on another device than it computes on."""
        self._device = device

    @property
    def text_encoders(self) -> list[nn.Module]:
        """The pipeline's text encoders, in the order of their names."""
        parts = self.pipe.components
        return [parts[name] for name in sorted(parts) if name.startswith("text_encoder") and parts[name] is not None]

    @classmethod
    def adapted(cls, layers: AdaptedLayers) -> tuple[str, ...]:
        """Return the name suffixes of the layers that receive adapters."""
        return cls.lora_targets if layers == "transformers" else (*cls.lora_targets, *cls.lora_around)

    @classmethod
    def shard_units(cls, network: nn.Module) -> list[nn.Module]:
        """Return the blocks of a denoiser that are gathered one at a time when its weights are sharded over GPUs."""
        return [module for module in network.modules() if type(module).__name__ in cls.shard_classes]

    def enable_recompute(self) -> None:
        """Turn on the denoiser's own activation checkpointing.

        Raises:
            RMDError: it has none.
        """
        network: Any = self.denoiser
        try:
            network.enable_gradient_checkpointing()
        except (AttributeError, ValueError) as error:
            raise RMDError(
                f"the {self.family} network does not support gradient checkpointing: "
                "set train.gradient_checkpointing to false"
            ) from error

    def check_frames(self, frames: int) -> None:
        """Raise RMDError unless the family generates samples with that many frames."""
        step = self.frame_step
        if not self.moving and frames != 1:
            raise RMDError(
                f"{self.family} makes single pictures, not {frames} frames: leave frames out, or set it to 1"
            )
        if self.moving and (frames < 1 or (frames - 1) % step):
            below = max((frames - 1) // step * step, 0) + 1
            raise RMDError(
                f"{self.family} makes clips of 1 + {step} n frames, not of {frames}: use {below} or {below + step}"
            )

    def decode(self, x0: Tensor) -> Tensor:
        """Decode clean latents to images (B, 3, H, W) in [-1, 1]; a family of videos returns (B, 3, T, H, W).

        Latents are scaled and shifted as the VAE's configuration says. A VAE in float16 that would overflow there
        (`force_upcast`) decodes in float32.
        """
        vae = self.pipe.vae
        scale, mean, std, shift = latent_rules(vae, x0.device)
        with upcast(vae):
            images: Tensor = vae.decode((x0.float() / scale * std + mean + shift).to(vae.dtype), return_dict=False)[0]
        return images

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to clean latents, the inverse of `decode`.

        The latents are the mode of the VAE's posterior, not a sample from it.

        Raises:
            RMDError: the family generates videos.
        """
        if self.moving:
            raise RMDError(f"{self.family} generates videos: it cannot learn from real images")
        vae = self.pipe.vae
        scale, mean, std, shift = latent_rules(vae, self.device)
        with upcast(vae):
            encoded = vae.encode(images.to(self.device, vae.dtype))
        # AutoencoderTiny has no posterior: it encodes directly to latents.
        raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        latents: Tensor = ((raw.float() - shift - mean) / std) * scale
        return latents

    def predict(
        self, module: nn.Module, x: Tensor, t: float | Tensor, kwargs: dict[str, Any], *, guidance: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Call a network once and convert its output to (x0, eps), both of x's shape and at least float32.

        Args:
            module: the network that plays the role.
            x: noisy latents.
            t: times in [0, 1000]: one for the batch, or one per sample (B,).
            kwargs: from `stage_cond`; with guidance, for the B prompts followed by the B null prompts.
            guidance: scale of classifier-free guidance, applied to the network's output as the official pipelines do;
                both branches run in the same call. None: no guidance.
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


def text_to(kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a network's arguments with floating-point tensors in its precision, which text encoders may not share."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in kwargs.items()
    }


def _prediction(scheduler: Mapping[str, object]) -> Prediction:
    """Return what a network with a variance-preserving schedule predicts."""
    known: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
    return one_of("prediction_type of the scheduler", scheduler.get("prediction_type", "epsilon"), known)
