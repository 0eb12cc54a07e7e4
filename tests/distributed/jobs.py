"""Runs that are made by one process and by two, and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from families import TINY, recipe_of
from torch import Tensor
from torch.distributed.tensor import DTensor

from rmd.models import Backbone
from rmd.models.roles import TRAINED
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import Recipe
from rmd.train.loop import Trainer
from rmd.train.parallel import Parallel, local
from rmd.train.tracking import MACHINE
from rmd.train.weights import load_sharded_teacher


@dataclass(frozen=True)
class Job:
    """Some iterations of a tiny run, by any number of processes."""

    name: str
    family: str = "sdxl"
    mode: str = "lora"
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    dtype: str = "float32"
    dp_replicate: int = 1
    context_parallel: int = 1
    iterations: int = 2
    fake_updates: int = 1
    slow: bool = False
    """Only among the slow tests, because other jobs show the same for another mode or family."""

    def recipe(self, prompts: Path) -> Recipe:
        train = {
            "batch_size": 4, "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "gradient_checkpointing": self.gradient_checkpointing, "dtype": self.dtype,
            "iterations": self.iterations,
        }  # fmt: skip
        method = {"guidance": 2.0, "fake_updates": self.fake_updates, "warmup_steps": 1}
        recipe = recipe_of(self.family, Path("teacher"), self.mode, train=train, method=method)
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"prompts": str(prompts)})})

    def backbone(self) -> Backbone:
        # in float64, what is compared is the arithmetic, not its rounding: AdamW makes a step of the same size from any
        # gradient, so that of a gradient near zero, rounding decides
        made = TINY[self.family]()
        made.pipe.to(torch.float64 if self.dtype == "float32" else torch.bfloat16)
        return made


MODES = ("lora", "full")
JOBS = [
    Job("sdxl-lora", "sdxl", "lora"),
    Job("sdxl-full", "sdxl", "full", slow=True),
    Job("pixart", "pixart", "lora", slow=True),
    Job("sd3", "sd3", "full", fake_updates=2),
    *(Job(f"wan-{mode}", "wan", mode, slow=mode == "lora") for mode in MODES),
    *(
        Job(
            f"accumulated-and-recomputed-{mode}",
            "pixart",
            mode,
            gradient_accumulation_steps=2,
            gradient_checkpointing=True,
            slow=mode == "full",
        )
        for mode in MODES
    ),
    Job("replicas", "sd3", "full", dp_replicate=2),
    Job("context-lora", "wan", "lora", context_parallel=2, gradient_checkpointing=True),
    Job("context-full", "wan", "full", context_parallel=2, slow=True),
    Job("half-lora", "wan", "lora", dtype="bfloat16", slow=True),
    Job("half-full", "wan", "full", dtype="bfloat16"),
]
UNLOADED = [
    Job("unloaded-lora", "pixart", "lora"),
    Job("unloaded-full", "wan", "full"),
    Job("unloaded-half-lora", "wan", "lora", dtype="bfloat16", dp_replicate=2),
    Job("unloaded-half-full", "wan", "full", dtype="bfloat16", dp_replicate=2, slow=True),
]
RESHARDED = [Job("resharded-lora", "pixart", "lora", slow=True), Job("resharded-full", "sd3", "full")]


def gathered(trainer: Trainer) -> dict[str, Tensor]:
    """Return the full weights, average and optimiser states; all processes must call this."""
    state = {f"average/{name}": value for name, value in trainer.trained.average.items()}
    for role in TRAINED:
        optimizer = trainer.trained.optimizers[role]
        for name, parameter in trainer.roles.named_trainable(role).items():
            state[f"{role}/{name}"] = parameter.detach()
            state.update({f"{role}/{name}/{key}": value for key, value in optimizer.state[parameter].items()})
    return joined(state)


def joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return full copies of tensors that may be sharded along their first dimension.

    They are gathered together, which one by one would take seconds, and as arrays: each of hundreds of pickled tensors
    would be a file of its own.
    """
    mine = {name: local(tensor).detach().clone().numpy() for name, tensor in tensors.items()}
    parts = [mine]
    if dist.is_initialized():
        parts = [mine] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
    full = {}
    for name, tensor in tensors.items():
        of_all = [torch.from_numpy(part[name]) for part in (parts if is_sharded(tensor) else [mine])]
        full[name] = torch.cat(of_all) if len(of_all) > 1 else of_all[0]
    return full


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is sharded. A mesh's own `mesh["dp_shard"]` would be made anew for every tensor."""
    if not isinstance(tensor, DTensor):
        return False
    mesh = tensor.device_mesh
    return mesh.size((mesh.mesh_dim_names or ()).index("dp_shard")) > 1


def of_the_run(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in MACHINE}


def run(job: Job, prompts: Path, folder: Path, parallel: Parallel) -> dict[str, Any]:
    """Return the metrics of every iteration, and everything that is trained."""
    trainer = Trainer(job.recipe(prompts), job.backbone(), folder, parallel=parallel)
    values = [of_the_run(trainer.iterate(iteration)[0]) for iteration in range(job.iterations)]
    return {"values": values, "state": gathered(trainer)}


def go_on(job: Job, prompts: Path, folder: Path, parallel: Parallel, *, until: int) -> dict[str, Tensor]:
    """Start a run or resume the one in the folder, up to iteration `until`; return everything that is trained."""
    recipe = job.recipe(prompts)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": until})})
    trainer = Trainer(recipe, job.backbone(), folder, parallel=parallel)
    trainer.train(resume=folder.exists())
    return gathered(trainer)


def load_in_parts(job: Job, prompts: Path, teacher: Path, parallel: Parallel) -> dict[str, Any]:
    """Compare an iteration whose teacher is loaded as usual with one whose teacher each process reads its shards of."""
    recipe = job.recipe(prompts).model_copy(update={"teacher": str(teacher)})
    usual = Trainer(recipe, load_teacher(recipe), teacher.parent, parallel=parallel)
    backbone, weights = load_sharded_teacher(recipe)
    sharded = Trainer(recipe, backbone, teacher.parent, parallel=parallel, weights=weights)
    held = [local(parameter).numel() / parameter.numel() for parameter in backbone.denoiser.parameters()]
    results = [(of_the_run(trainer.iterate(0)[0]), gathered(trainer)) for trainer in (usual, sharded)]
    return {"values": [values for values, _ in results], "states": [state for _, state in results], "held": held}
