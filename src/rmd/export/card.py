"""The model card of an exported student: what it is, what it comes from, how good it is, and how to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from rmd.export.student import StudentConfig

_LORA = """pipe = DiffusionPipeline.from_pretrained("{base}")
pipe = RMDPipeline.from_pipe(pipe, "{here}")"""
_FULL = 'pipe = RMDPipeline.from_pretrained("{here}")'


def model_card(config: StudentConfig, to: str, *, source: Path, here: str = "PATH-OR-REPOSITORY") -> str:
    """Markdown with the metadata that the Hub reads.

    Args:
        to: the format, see `rmd.export.formats`.
        source: the student's folder; a report beside it (of `rmd demo`) gives the table of measures, the teacher's
            own card, where it is a folder, the licence.
    """
    adapter = to in ("diffusers-lora", "kohya", "comfyui")
    front: dict[str, Any] = {
        "base_model": config.teacher,
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": "diffusers",
        "license": _license(config.teacher),
        "pipeline_tag": "text-to-image",
        "tags": ["rmd", "distillation", "few-step", config.family, *(["lora"] if adapter else [])],
    }
    load = (_LORA if to == "diffusers-lora" else _FULL).format(base=config.teacher, here=here)
    first, last = config.plan.stages[0], config.plan.stages[-1]
    steps = "\n".join(
        f"| {step.index} | {config.plan.stage_of(step).size} | {step.model_time:.1f} |" for step in config.plan.steps
    )
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {config.values['recipe']}: {config.teacher} in {len(config.plan.steps)} steps",
        f"A student of `{config.teacher}`, distilled with {config.values['method'].upper()}. It starts at "
        f"{first.size} pixels and ends at {last.size}. The teacher's guidance of {config.guidance:g} is distilled in: "
        f"sample without. Prompts: `{config.values['prompts']}`; no images were used.",
        f"| step | size | model time |\n| --- | --- | ---: |\n{steps}",
    ]
    if to in ("kohya", "comfyui"):
        parts.append(
            "The file holds the adapter for programs that read this layout. They run one resolution at a time: for the "
            "cascade itself, with its change of resolution, use the student in diffusers' layout with RMDPipeline."
        )
    else:
        imports = "from diffusers import DiffusionPipeline\n\n" if to == "diffusers-lora" else ""
        call = 'pipe.to("cuda")("a red ball on the beach").images[0].save("ball.png")'
        parts.append(f"```python\n{imports}from rmd import RMDPipeline\n\n{load}\n{call}\n```")
    if table := _measures(source):
        parts.append(f"## Measured\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _license(teacher: str | None) -> str:
    """The licence that the teacher's card names; `other` where there is none to read."""
    path = Path(teacher or "") / "README.md"
    if teacher is None or not path.is_file():
        return "other"
    _, _, rest = path.read_text(encoding="utf-8").partition("---\n")
    front, fence, _ = rest.partition("\n---")
    if not fence:
        return "other"
    try:
        found = yaml.safe_load(front)
    except yaml.YAMLError:
        return "other"
    return str(found.get("license", "other")) if isinstance(found, dict) else "other"


def _measures(source: Path) -> str:
    """The table of a report beside the student, or nothing."""
    path = source.parent / "report.json"
    if not path.is_file():
        return ""
    from rmd.report import Report, markdown_table

    try:
        return markdown_table(Report.model_validate(json.loads(path.read_text(encoding="utf-8"))))
    except ValueError:
        return ""
