"""Export a student in the layouts that other programs read, and check that what was written is the same student.

A LoRA is written with its scale folded into its weights (alpha equals the rank), so that a program that ignores alpha
and one that heeds it agree. Every export is loaded back and sampled with before it takes its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchLCMScheduler
from diffusers.utils import convert_state_dict_to_kohya
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from rmd.common.errors import RMDError, one_of
from rmd.core.plan import StepPlan
from rmd.core.randomness import CounterNoise
from rmd.export.card import model_card
from rmd.models.adapter import ADAPTER, LORA_NAME, apply_lora_file, write_lora
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents
from rmd.models.registry import load_backbone
from rmd.models.share import check_hub_id, shared_teacher, shared_values, without_paths
from rmd.models.student import (
    CONFIG_NAME,
    Student,
    StudentConfig,
    base_of,
    load_student,
    student_folder,
)
from rmd.worlds.registry import packaged_teachers

FORMATS = ("diffusers-lora", "diffusers-full", "kohya", "comfyui", "fused")
TOLERANCE = 1e-4
"""Largest difference of samples, over their largest value, between a student and its export reloaded."""
_WAN_NAMES = (
    (".attn1.", ".self_attn."), (".attn2.", ".cross_attn."), (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."),
    (".to_out.0.", ".o."), (".ffn.net.0.proj.", ".ffn.0."), (".ffn.net.2.", ".ffn.2."),
)  # fmt: skip
_EFFECTIVE = os.access in os.supports_effective_ids
_CHECK_PROMPTS = ("", "a photograph of a red ball on the beach")


def export_student(
    source: str | Path,
    to: str,
    out: Path,
    *,
    teacher: str | Path | None = None,
    variant: str | None = None,
    device: str = "cpu",
    base_model: str | None = None,
    measures: str = "",
) -> Path:
    """Write the student in another format into `out`, with its plan and a model card, and verify it.

    The export contains no path of this machine. If the teacher is a local folder, its name is left out, unless
    `base_model` gives one.

    Args:
        to: one of `FORMATS`. `diffusers-lora`, `kohya`, `comfyui` and `fused` (the adapter merged into its base, an
            ordinary pipeline) need a LoRA student, `diffusers-full` a full one.
        teacher: the base of a LoRA student, if it is not where it was distilled.
        variant: variant of the weight files, such as "fp16"; by default the plain files, or the only variant.
        base_model: the teacher's repository on the Hub, OWNER/NAME, for the card and the config.
        measures: a table of measures in Markdown for the card, such as `rmd.report.tables.measures_beside` returns.

    Raises:
        RMDError: the format does not fit the student, the folder cannot be written, or what was written is not the
            same student.
    """
    one_of("format", to, FORMATS)
    if base_model is not None:
        check_hub_id("the base model", base_model)
    check_out(out, [path for path in (source, teacher) if path is not None])
    student = load_student(source, teacher=teacher, variant=variant)
    config, backbone = student.config, student.backbone
    _check_fits(config, to)
    name = shared_teacher(config.teacher, base_model)
    home = config.teacher if teacher is None else str(teacher)
    check_out(out, [] if home is None else [home])
    backbone.pipe.to(device)
    expected = _samples(backbone, config.plan)
    with student_folder(out) as partial:
        partial.mkdir(parents=True)
        values = shared_values(config.values, name)
        if to in ("diffusers-full", "fused"):
            values["mode"] = "full"
            if to == "fused":
                _fuse(backbone.denoiser)
            _write_pipeline(student, partial)
        else:
            _write_adapter(student, to, partial)
        without_paths(partial)
        (partial / CONFIG_NAME).write_text(json.dumps(values, indent=1), encoding="utf-8")
        base = None if home is None or home in packaged_teachers() else Path(home)
        card = model_card(config, to, teacher=name, base=base, measures=measures)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _verify(config, to, partial, expected, teacher=teacher, variant=variant, device=device)
    return out


def check_out(out: Path, sources: Sequence[str | Path]) -> None:
    """Check that an export may be written to a folder, before anything is computed.

    Args:
        sources: folders that are read and must stay; may include repositories on the Hub.

    Raises:
        RMDError: `out` is a file, cannot be written to, or is or contains one of the sources.
    """
    place = out.resolve()
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise RMDError(f"cannot write to {out}: {there} is a file; choose another --out")
    if not os.access(place.parent if there == place else there, os.W_OK, effective_ids=_EFFECTIVE):
        raise RMDError(f"cannot write to {out}: you may not write there; choose another --out")
    for source in map(Path, sources):
        if source.exists() and source.resolve().is_relative_to(place):
            raise RMDError(f"the export would take the place of {source}, which it is made of: choose another --out")


def folded(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Adapter tensors whose scale is 1: the second matrix of each pair takes the factor."""
    return {name: (tensor * scale if ".lora_B." in name else tensor).contiguous() for name, tensor in state.items()}


def original_wan_name(name: str) -> str:
    """A layer of Wan's blocks by the name it has in Wan's own code, which ComfyUI knows."""
    for ours, theirs in _WAN_NAMES:
        name = name.replace(ours, theirs)
    return name


def lcm_scheduler(plan: StepPlan) -> dict[str, Any] | None:
    """Config of the FlowMatchLCMScheduler that is this cascade, or None where none is.

    That scheduler adds fresh noise after every step and enlarges before it, and its first stage is the size that is
    asked for; so it is the same cascade when every stage has one step, and nothing of the predicted noise is kept.
    """
    crossing, last = plan.crossing, plan.stages[-1]
    one_each = len(plan.steps) == len(plan.stages)
    ratios = {(stage.height * last.width == stage.width * last.height) for stage in plan.stages}
    if not one_each or crossing.beta != 0.0 or ratios != {True}:
        return None
    first = plan.stages[0]
    factors = [stage.height / first.height for stage in plan.stages[1:]]
    scheduler = FlowMatchLCMScheduler(shift=1.0, scale_factors=factors, upscale_mode=crossing.upsample)
    return {**scheduler.config, "sigmas": [step.model_time / 1000 for step in plan.steps]}


def _check_fits(config: StudentConfig, to: str) -> None:
    if (to == "diffusers-full") != (config.mode == "full"):
        other = "diffusers-full" if config.mode == "full" else "diffusers-lora, kohya, comfyui or fused"
        raise RMDError(f"{config.source} is a {config.mode} student, which cannot be exported to {to}: use {other}")
    if to == "kohya" and config.family != "sdxl":
        raise RMDError(f"the kohya format names the layers of SDXL, but the student is of {config.family}: use comfyui")


def _adapter(denoiser: nn.Module) -> tuple[dict[str, Tensor], Any]:
    """The adapter's tensors with scale 1, and what PEFT knows of it."""
    found: Any = denoiser
    settings = found.peft_config[ADAPTER]
    state = get_peft_model_state_dict(found, adapter_name=ADAPTER)
    return folded(state, settings.lora_alpha / settings.r), settings


def _write_adapter(student: Student, to: str, folder: Path) -> None:
    backbone = student.backbone
    state, settings = _adapter(backbone.denoiser)
    if to == "kohya" or (to == "comfyui" and student.config.family == "sdxl"):
        named = {f"unet.{name}": tensor for name, tensor in state.items()}
        save_file(convert_state_dict_to_kohya(named), folder / LORA_NAME, metadata={"format": "pt"})
    elif to == "comfyui" and student.config.family == "wan":
        named = {f"diffusion_model.{original_wan_name(name)}": tensor for name, tensor in state.items()}
        save_file(named, folder / LORA_NAME, metadata={"format": "pt"})
    else:
        rank, targets = int(settings.r), sorted(settings.target_modules)
        metadata = {"r": rank, "lora_alpha": float(rank), "target_modules": targets}
        write_lora(backbone, state, metadata, folder)


def _write_pipeline(student: Student, folder: Path) -> None:
    plan, pipe = student.plan, student.backbone.pipe
    pipe.save_pretrained(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text(encoding="utf-8"))
    scheduler["stages"] = [
        {
            "height": stage.height,
            "width": stage.width,
            "timesteps": [step.model_time for step in plan.steps if step.stage == stage.index],
        }
        for stage in plan.stages
    ]
    path.write_text(json.dumps(scheduler, indent=2), encoding="utf-8")
    spread = student.config.conditioning.pos_rescale  # which the stock transformer does not know
    if student.config.family == "sd3" and not spread and (single := lcm_scheduler(plan)) is not None:
        text = json.dumps(single, indent=2)
        (folder / "scheduler" / "flow_match_lcm.json").write_text(text, encoding="utf-8")


def _fuse(denoiser: nn.Module) -> None:
    """Merge the adapter into the base for good, which leaves stock modules."""
    for name, module in list(denoiser.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
            merged: Any = module
            merged.merge(adapter_names=[ADAPTER])
            parent = denoiser.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], merged.get_base_layer())
    owner: Any = denoiser
    del owner.peft_config
    if hasattr(owner, "_hf_peft_config_loaded"):
        owner._hf_peft_config_loaded = False


@torch.no_grad()
def _samples(backbone: Backbone, plan: StepPlan) -> Tensor:
    count = len(_CHECK_PROMPTS)
    cond = backbone.encode(list(_CHECK_PROMPTS))
    noise = CounterNoise(0, range(count), device=backbone.device)
    return sample_latents(backbone, backbone.denoiser, plan, cond, noise).float().cpu()


def _verify(
    config: StudentConfig, to: str, folder: Path, expected: Tensor, *, teacher: str | Path | None, variant: str | None,
    device: str,
) -> None:  # fmt: skip
    """RMDError unless the folder, loaded as its users do, samples what the student did."""
    if to in ("diffusers-full", "fused"):
        backbone = load_backbone(folder, conditioning=config.conditioning)
    else:
        backbone = load_backbone(base_of(config, teacher), conditioning=config.conditioning, variant=variant)
        apply_lora_file(backbone, folder)
    backbone.pipe.to(device)
    found = _samples(backbone, config.plan)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise RMDError(
            f"what was written as {to} is not the same student: its samples differ by {difference:.2g} of their range "
            f"(at most {TOLERANCE:g}); nothing was kept; please report it"
        )
