"""Estimates the memory that a run needs on a GPU, by going through its iteration on the meta device.

The networks, the roles, the losses and the backward passes are those of the run, and only the numbers are missing
(`rmd.bench.live`). Weights, masters, moments and averages are counted one by one. What differs between moments of an
iteration (activations, gradients, merged adapters) is measured as the largest number of bytes that are alive at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rmd.bench.live import LiveBytes, gpu_attention
from rmd.bench.training import scheduler_of
from rmd.common.errors import RMDError
from rmd.core.plan import Step, StepPlan
from rmd.core.randomness import CounterNoise
from rmd.methods import METHODS, Batch, Method, Real
from rmd.models.base import Architecture, Backbone
from rmd.models.cond import Cond
from rmd.models.hub import first_line
from rmd.models.registry import family_class
from rmd.models.resolve import teacher_source
from rmd.models.roles import TRAINED, Roles, build_roles
from rmd.models.teacher import DTYPES
from rmd.models.untrained import META, architecture_of, blank_pass, meta_part, untrained_backbone
from rmd.recipes.schema import Recipe

MOMENTS = 8
"""Bytes of AdamW's two moments, in float32, for each trained weight."""
SLACK = 2e9
"""Bytes for the CUDA context, the libraries, and what torch's allocator cannot use; an assumption, not measured."""
ENCODERS, ENCODING = "text encoders", "encoding of prompts"
"""Names of a part and of a phase, of which an estimate has at most one."""
GATHERED = 2
"""Blocks whose weights are whole at the same time when they are sharded: the present one, and the next."""


@dataclass(frozen=True)
class Part:
    """Bytes that one thing takes on each GPU."""

    name: str
    bytes: float


@dataclass(frozen=True)
class Memory:
    """The estimate for one GPU of a run."""

    mode: Literal["lora", "full"]
    samples: float
    """Samples that the GPU computes at once; below 1 if several GPUs share the tokens of one."""
    parts: tuple[Part, ...]
    """Whatever is held all the time."""
    phases: tuple[Part, ...]
    """Whatever each part of an iteration needs beyond `parts` at its largest moment; only one happens at a time."""

    @property
    def peak(self) -> Part:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def allocated(self) -> float:
        """The largest number of bytes in tensors, which `torch.cuda.max_memory_allocated` measures."""
        return sum(part.bytes for part in self.parts) + self.peak.bytes

    @property
    def total(self) -> float:
        """The bytes that the GPU needs: `allocated` and `SLACK`."""
        return self.allocated + SLACK


@dataclass
class Networks:
    """The networks of a run on the meta device."""

    recipe: Recipe
    plan: StepPlan
    architecture: Architecture
    backbone: Backbone
    roles: Roles
    method: Method
    sharded: bool
    live: LiveBytes


def recipe_memory(recipe: Recipe, *, gpus: int = 1, step: Step | None = None, loaded: bool = True) -> Memory:
    """Return the estimate for a recipe, whose noise is spelt out, on each of `gpus` GPUs.

    Args:
        gpus: number of processes of the run.
        step: the step of the plan that is trained; by default the last, which needs most.
        loaded: whether the text encoders and the VAE are there; `rmd bench train --untrained` does without them.

    Raises:
        RMDError: the architecture of the teacher is unknown, the batch cannot be divided among the GPUs, or the method
            cannot go without numbers.
    """
    shared = recipe.parallel.context_parallel
    pieces = gpus // shared * recipe.train.gradient_accumulation_steps
    if not pieces or recipe.train.batch_size % pieces or gpus % (shared * recipe.parallel.dp_replicate):
        raise RMDError(
            f"a batch of {recipe.train.batch_size} cannot be divided among {gpus} GPUs: change train.batch_size, "
            "train.gradient_accumulation_steps, the keys of parallel, or the number of GPUs"
        )
    samples = recipe.train.batch_size // pieces
    networks = meta_networks(recipe, sharded=gpus > 1)
    group = gpus // recipe.parallel.dp_replicate
    try:
        parts = [*held_parts(networks, group), *(_companions(networks) if loaded else ())]
        phases = _phases(networks, networks.plan.steps[-1] if step is None else step, samples)
        more = [*_pictures(networks), *_encoding(networks)] if loaded else []
    except RuntimeError as error:  # operations that need numbers, and sizes that do not fit each other
        raise RMDError(f"the memory of this run cannot be counted without its weights: {first_line(error)}") from error
    spread = [Part(phase.name, phase.bytes / shared) for phase in phases]
    kept = tuple(part for part in parts if part.bytes)
    return Memory(recipe.roles.mode, samples / shared, kept, (*spread, *more))


def meta_networks(recipe: Recipe, *, sharded: bool = False) -> Networks:
    """Make the backbone, the roles and the method of a recipe, whose noise is spelt out, on the meta device.

    Raises:
        RMDError: the architecture of the teacher is unknown, or its networks do not work.
    """
    family = family_class(recipe.family)
    architecture = architecture_of(teacher_source(recipe.teacher), family)
    dtype, plan = DTYPES[recipe.train.dtype], recipe.build_plan()
    backbone = untrained_backbone(
        family, architecture, scheduler=scheduler_of(recipe), dtype=dtype, conditioning=recipe.conditioning
    )
    backbone.computes_on(META)
    vae = meta_part(architecture, "vae", dtype)
    if vae is not None:
        backbone.pipe.register_modules(vae=vae)
    _check_configurations(backbone, architecture, plan)
    if recipe.train.gradient_checkpointing:
        backbone.enable_recompute()
    with META:  # PEFT would make the adapters on the CPU
        roles = build_roles(
            backbone.denoiser, mode=recipe.roles.mode, targets=backbone.adapted(recipe.roles.layers),
            rank=recipe.roles.rank, alpha=recipe.roles.alpha, unread=backbone.unread(backbone.denoiser),
        )  # fmt: skip
    for network, _ in roles.networks():
        nn.Module.to(network, META, dtype)
    roles.find_parameters()
    if sharded:  # adapters of sharded weights are not merged
        vars(roles)["fused"] = roles.use
    method = METHODS.get(recipe.method.name)(backbone, roles, plan, recipe.method, seed=recipe.train.seed)
    return Networks(recipe, plan, architecture, backbone, roles, method, sharded, LiveBytes())


@torch.no_grad()
def _check_configurations(backbone: Backbone, architecture: Architecture, plan: StepPlan) -> None:
    """Call the denoiser and the VAE once, in whose constructors not every nonsense in a configuration shows.

    Raises:
        RMDError: one of them does not work.
    """
    first = plan.stages[0]
    try:
        backbone.decode(blank_pass(backbone, architecture, first.height, first.width, plan.frames))
    except (RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError) as error:  # diffusers' own code
        raise RMDError(f"the configurations of the teacher's networks do not work: {first_line(error)}") from error


def held_parts(networks: Networks, group: int) -> list[Part]:
    """Return the weights and the optimisers' states, of which each GPU of a group of `group` holds a share."""
    recipe, roles = networks.recipe, networks.roles
    trained = {role: roles.in_network(role) for role in TRAINED}
    masters = {role: roles.named_trainable(role) for role in TRAINED}
    numbers = {role: sum(p.numel() for p in masters[role].values()) for role in TRAINED}
    both = sum(numbers.values())
    buffers = (b for network, _ in roles.networks() for b in network.buffers())
    frozen = _bytes([*roles.frozen(), *buffers])
    copies = [p for role in TRAINED for name, p in masters[role].items() if p is not trained[role][name]]
    what = "adapters" if recipe.roles.mode == "lora" else "student and fake score"
    parts = [
        Part("teacher's network" if recipe.roles.mode == "full" else "frozen base, which is the teacher", frozen),
        # Sharded weights that are trained are kept in float32 only.
        Part(f"{what}: {both / 1e6:,.0f} million weights", 0 if networks.sharded and copies else _bytes_of(trained)),
        Part(f"float32 masters of {'the ' if recipe.roles.mode == 'lora' else ''}{what}", _bytes(copies)),
        Part("AdamW's two moments", MOMENTS * both),
        Part("moving average of the student", 4 * numbers["student"] if recipe.optim.ema > 0 else 0),
        Part("gradients", 4 * max(numbers.values()) if networks.sharded else 0),
    ]
    shared = [Part(part.name, part.bytes / group) for part in parts]
    return [*shared, Part("blocks whose weights are gathered", _gathered(networks) if networks.sharded else 0)]


def _bytes_of(trained: dict[Literal["student", "fake"], dict[str, nn.Parameter]]) -> int:
    return sum(_bytes(parameters.values()) for parameters in trained.values())


def _gathered(networks: Networks) -> int:
    """Return the bytes of the blocks of sharded weights that are whole at the same time."""
    network, _ = networks.roles.networks()[0]
    sizes = [_bytes(unit.parameters()) for unit in networks.backbone.shard_units(network)]
    return GATHERED * max(sizes, default=_bytes(network.parameters()))


def _companions(networks: Networks) -> list[Part]:
    """Return the networks of the pipeline that stay on every GPU besides the denoiser."""
    vae = meta_part(networks.architecture, "vae", DTYPES[networks.recipe.train.dtype])
    parts = [] if vae is None else [Part("VAE", _bytes(vae.parameters()))]
    data = networks.recipe.data
    return parts if data.offload or data.cache is not None else [*parts, Part(ENCODERS, _encoders(networks))]


def _encoders(networks: Networks) -> int:
    """Return the bytes of the text encoders, as far as their sizes are known."""
    names = [name for name in networks.architecture.parts if name.startswith("text_encoder")]
    parts = [meta_part(networks.architecture, name, DTYPES[networks.recipe.train.dtype]) for name in names]
    return sum(_bytes(part.parameters()) for part in parts if part is not None)


def _phases(networks: Networks, step: Step, samples: int) -> list[Part]:
    """Go through the two updates of an iteration for as many samples, and return what each needs."""
    live, roles, method = networks.live, networks.roles, networks.method
    accumulates = networks.recipe.train.gradient_accumulation_steps > 1
    with live, gpu_attention():
        for network, _ in roles.networks():
            for tensor in [*network.parameters(), *network.buffers()]:
                live.hold(tensor)
        for role in TRAINED:
            for parameter in roles.trainable(role):
                live.hold(parameter)
        base = live.now
        batch = blank_batch(networks, samples)
        phases = []
        live.restart()
        _prepare(networks, "student", accumulates)
        loss, rollout = method.student_loss(batch, step)
        _backward(networks, "student", loss)
        phases.append(Part("update of the student", live.most - base))
        roles.zero_grad()
        live.restart()
        _prepare(networks, "fake", accumulates)
        loss = method.fake_loss(batch, rollout)
        _backward(networks, "fake", loss)
        phases.append(Part("update of the fake score", live.most - base))
        roles.zero_grad()
    return phases


def _prepare(networks: Networks, role: Literal["student", "fake"], accumulates: bool) -> None:
    """Give a role the gradients of an earlier micro-batch, if there is one; those of sharded weights are in `parts`."""
    if accumulates and not networks.sharded:
        for parameter in networks.roles.trainable(role):
            parameter.grad = torch.empty_like(parameter)


def _backward(networks: Networks, role: Literal["student", "fake"], loss: Tensor) -> None:
    """Run a backward pass; the gradients of sharded weights leave the GPU as soon as they are complete."""
    if not networks.sharded:
        networks.roles.backward(role, loss)
        return

    def leave(parameter: Tensor) -> None:
        parameter.grad = None

    own = networks.roles.in_network(role).values()
    handles = [parameter.register_post_accumulate_grad_hook(leave) for parameter in own]
    with networks.roles.use(role):
        loss.backward()
    for handle in handles:
        handle.remove()


def blank_batch(networks: Networks, samples: int) -> Batch:
    """Return a batch of as many samples in the shapes of a run's, without numbers."""
    dtype, shapes = DTYPES[networks.recipe.train.dtype], networks.backbone.cond_shapes(networks.architecture)

    def cond(count: int) -> Cond:
        return Cond({name: torch.empty(count, *shape, device=META, dtype=dtype) for name, shape in shapes.items()})

    noise = CounterNoise(networks.recipe.train.seed, range(samples), device=META)
    real = None
    if networks.recipe.data.images is not None:
        shape = networks.method.latent_shape(samples, networks.plan.match_stage)
        real = Real(torch.empty(shape, device=META), cond(samples))
    after_warmup = 10**6
    return Batch(after_warmup, cond(samples), cond(1).expand(samples), noise, real)


def _pictures(networks: Networks) -> list[Part]:
    """Return what the pictures of a run need: one is decoded at a time, while the student's weights are held twice."""
    if "vae" not in networks.architecture.parts:
        return []
    final, frames, live = networks.plan.stages[-1], networks.plan.frames, LiveBytes()
    with live, gpu_attention(), torch.no_grad():
        latents = torch.empty(networks.backbone.latent_shape(1, final.height, final.width, frames), device=META)
        networks.backbone.decode(latents)
    copies = 0 if networks.sharded else _bytes(networks.roles.trainable("student"))
    return [Part("pictures for the run's folder", live.most + copies)]


def _encoding(networks: Networks) -> list[Part]:
    """Return the text encoders if they are on the GPU only while they encode; their activations are small."""
    data = networks.recipe.data
    offloads = data.offload and data.cache is None
    return [Part(ENCODING, _encoders(networks))] if offloads else []


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def parameters(network: nn.Module) -> int:
    """Return the number of parameters; tables of positions are buffers and do not count."""
    return sum(p.numel() for p in network.parameters())
