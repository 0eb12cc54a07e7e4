"""Export a student in the layouts that other programs read, and check that what was written is the same student.

A LoRA is written with its scale folded into its weights (alpha equals the rank), so that programs that ignore alpha and
programs that apply it agree. Every export is loaded back and must give the student's samples before it is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchLCMScheduler
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from rmd.common.errors import RMDError, one_of
from rmd.common.files import check_place
from rmd.core.plan import StepPlan
from rmd.core.randomness import CounterNoise
from rmd.export.card import LAYOUTS, model_card
from rmd.models.adapter import ADAPTER, LORA_NAME, apply_lora_file, write_lora
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents
from rmd.models.hub import check_hub_id
from rmd.models.registry import load_backbone
from rmd.models.resolve import is_packaged
from rmd.models.share import shared_teacher, shared_values, without_paths
from rmd.models.student import Student, base_of, load_student, student_folder, write_standalone
from rmd.models.student_config import CONFIG_NAME, StudentConfig

FORMATS = ("diffusers-lora", "diffusers-full", "kohya", "comfyui", "fused")
PIPELINES = ("diffusers-full", "fused")
"""Formats that are whole pipelines; the others are adapter files."""
TOLERANCE = 1e-4
"""Largest accepted difference between the samples of a student and of its export, relative to the largest value."""
_CHECK_PROMPTS = ("", "a photograph of a red ball on the beach")


def export_student(
    source: str | Path, to: str, out: Path, *, teacher: str | Path | None = None, variant: str | None = None,
    device: str = "cpu", base_model: str | None = None, measures: str = "",
) -> Path:  # fmt: skip
    """Write a student in another format into `out`, with its plan and a model card, and verify what was written.

    The export contains no path of this machine. If the teacher is a local folder, the export does not name it, unless
    `base_model` gives a name.

    Args:
        to: one of `FORMATS`. `diffusers-lora`, `kohya`, `comfyui` and `fused` (the adapter merged into its base, an
            ordinary pipeline) need a LoRA student, `diffusers-full` a full one.
        teacher: the base of a LoRA student, if it is not where the student was distilled.
        variant: variant of the weight files, such as "fp16"; by default the plain files, or the only variant.
        base_model: the teacher's repository on the Hub, OWNER/NAME, for the card and the config.
        measures: a table of measures in Markdown for the card (`rmd.report.tables.measures_beside`).

    Raises:
        RMDError: the format does not suit the student, the folder cannot be written, or what was written does not give
            the student's samples.
    """
    one_of("format", to, FORMATS)
    if base_model is not None:
        check_hub_id("the base model", base_model)
    check_out(out, source, teacher)
    student = load_student(source, teacher=teacher, variant=variant)
    config, backbone = student.config, student.backbone
    _check_suits(config, type(backbone), to)
    name = shared_teacher(config.teacher, base_model)
    home = config.teacher if teacher is None else str(teacher)
    check_out(out, home)
    backbone.pipe.to(device)
    expected = _samples(backbone, config.plan)
    with student_folder(out) as partial:
        partial.mkdir(parents=True)
        write = _write_pipeline if to in PIPELINES else _write_adapter
        write(student, to, partial)
        if to not in LAYOUTS:
            write_standalone(backbone, config, partial)
        without_paths(partial)
        mode = {"mode": "full"} if to in PIPELINES else {}
        values = shared_values(config.values | mode, name)
        (partial / CONFIG_NAME).write_text(json.dumps(values, indent=1), encoding="utf-8")
        base = None if home is None or is_packaged(home) else Path(home)
        card = model_card(config, to, teacher=name, base=base, measures=measures)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _verify(config, to, partial, expected, teacher=teacher, variant=variant, device=device)
    return out


def check_out(out: Path, *sources: str | Path | None) -> None:
    """Check that an export may be written to a folder, before anything is computed.

    Args:
        sources: folders that are read and must stay; may include repositories on the Hub and None.

    Raises:
        RMDError: `out` is a file, cannot be written to, or is or contains one of the sources.
    """
    check_place(out, replace=True)
    for source in sources:
        if source is not None and Path(source).exists() and Path(source).resolve().is_relative_to(out.resolve()):
            raise RMDError(f"the export would replace {source}, which it is made from: choose another --out")


def folded(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return adapter tensors for a scale of 1: the second matrix of each pair is multiplied by `scale`."""
    return {name: (tensor * scale if ".lora_B." in name else tensor).contiguous() for name, tensor in state.items()}


def lcm_scheduler(plan: StepPlan) -> dict[str, Any] | None:
    """Return the config of the FlowMatchLCMScheduler that runs the same cascade, or None if there is none.

    That scheduler upsamples after every step and then adds fresh noise, and its first stage has the requested size. It
    is the same cascade if every stage has one step and none of the predicted noise is reinjected (beta = 0).
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


def _check_suits(config: StudentConfig, family: type[Backbone], to: str) -> None:
    """Raise RMDError unless a student of this mode and family can be written in a format."""
    if (to == "diffusers-full") != (config.mode == "full"):
        other = "diffusers-full" if config.mode == "full" else "diffusers-lora, kohya, comfyui or fused"
        raise RMDError(f"{config.source} is a {config.mode} student, which cannot be exported to {to}: use {other}")
    if to == "kohya" and to not in family.lora_layouts:
        raise RMDError(f"the kohya format has no names for the layers of the family {config.family}: use comfyui")


def _write_adapter(student: Student, to: str, folder: Path) -> None:
    """Write the adapter's tensors, with scale 1, in the layout of a format."""
    backbone = student.backbone
    network: Any = backbone.denoiser
    settings = network.peft_config[ADAPTER]
    state = folded(get_peft_model_state_dict(network, adapter_name=ADAPTER), settings.lora_alpha / settings.r)
    layout = backbone.lora_layouts.get(to)
    if layout is not None:
        save_file(layout(state), folder / LORA_NAME, metadata={"format": "pt"})
        return
    rank, targets = int(settings.r), sorted(settings.target_modules)
    write_lora(backbone, state, {"r": rank, "lora_alpha": float(rank), "target_modules": targets}, folder)


def _write_pipeline(student: Student, to: str, folder: Path) -> None:
    """Write the pipeline, with the plan's stages and times in its scheduler's config."""
    plan, backbone, pipe = student.plan, student.backbone, student.backbone.pipe
    if to == "fused":
        _fuse(backbone.denoiser)
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
    # The stock scheduler upsamples four-dimensional latents of a flow; the stock network cannot rescale positions.
    stock = backbone.schedule.kind == "flow" and not backbone.moving and not backbone.conditioning.pos_rescale
    if stock and (single := lcm_scheduler(plan)) is not None:
        text = json.dumps(single, indent=2)
        (folder / "scheduler" / "flow_match_lcm.json").write_text(text, encoding="utf-8")


def _fuse(denoiser: nn.Module) -> None:
    """Merge the adapter into the base permanently, and leave only stock modules."""
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
    """Return clean latents of two fixed prompts with fixed noise."""
    count = len(_CHECK_PROMPTS)
    cond = backbone.encode(list(_CHECK_PROMPTS))
    noise = CounterNoise(0, range(count), device=backbone.device)
    return sample_latents(backbone, backbone.denoiser, plan, cond, noise).float().cpu()


def _verify(
    config: StudentConfig, to: str, folder: Path, expected: Tensor, *, teacher: str | Path | None, variant: str | None,
    device: str,
) -> None:  # fmt: skip
    """Raise RMDError unless the folder, loaded as users load it, gives the samples that the student gave."""
    if to in PIPELINES:
        backbone = load_backbone(folder, conditioning=config.conditioning)
    else:
        backbone = load_backbone(base_of(config, teacher), conditioning=config.conditioning, variant=variant)
        apply_lora_file(backbone, folder)
    backbone.pipe.to(device)
    actual = _samples(backbone, config.plan)
    difference = float((actual - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise RMDError(
            f"the {to} export is not the same student: its samples differ by {difference:.2g} of their range "
            f"(at most {TOLERANCE:g} is allowed); nothing was kept, please report this"
        )
