"""The model card of an exported student: what it is, what it is based on, how good it is, and how to run it.

Names come from recipes, files and other people's cards. Each is escaped for the place where it is written: the front
matter by the Hub's own library, Markdown by `rmd.common.markdown`, and Python as a literal.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from rmd.common.markdown import markdown_block, markdown_code, markdown_lines, markdown_text
from rmd.core.plan import StepPlan
from rmd.models.base import Backbone
from rmd.models.hub import shared_prompts
from rmd.models.registry import family_class
from rmd.models.student_config import StudentConfig
from rmd.worlds.registry import packaged_teachers

ADAPTERS = ("diffusers-lora", "kohya", "comfyui")
"""Formats that hold only an adapter, which needs its teacher."""
LAYOUTS = ("kohya", "comfyui")
"""Formats whose tensors have other programs' names."""
HERE, TEACHER_HERE = "PATH-OR-REPOSITORY", "PATH-OR-REPOSITORY-OF-THE-TEACHER"
UNNAMED = (
    "Its teacher has no name here, because it was a folder of the machine that exported this student: export it again "
    "with `--base-model OWNER/NAME` to name the teacher's repository on the Hub."
)
ONE_SIZE = (
    "The file holds the adapter for programs that read this layout. They run one resolution at a time; the cascade "
    "itself, with its change of resolution, runs with RMDPipeline:"
)
_TEMPLATE = Path(__file__).with_name("card.md.j2")
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_MAX_CARD = 2**20
"""Largest size in bytes of a teacher's card that is read for its licence."""


def model_card(
    config: StudentConfig, to: str, *, teacher: str | None, base: Path | None = None, measures: str = ""
) -> str:
    """Return the card as Markdown with the metadata that the Hub reads.

    Args:
        to: the format, see `rmd.export.formats`.
        teacher: a name of the teacher that others can use (`rmd.models.share.shared_teacher`); None if it has none.
        base: the teacher's folder, whose own card names the licence.
        measures: a table of measures in Markdown; none by default.
    """
    backbone, plan, values = family_class(config.family), config.plan, config.values
    adapter = to in ADAPTERS
    steps = [(str(s.index), plan.stage_of(s).size, f"{s.model_time:.1f}") for s in plan.steps]
    recipe, count = markdown_text(str(values["recipe"])), len(plan.steps)
    card = ModelCard.from_template(
        _metadata(config, teacher, base, adapter=adapter),
        template_path=str(_TEMPLATE),
        heading=f"{recipe}: {markdown_text(teacher) if teacher else 'a student'} in {count} step{'s' * (count > 1)}",
        teacher=_about(teacher),
        method=markdown_text(str(values["method"]).upper()),
        first=plan.stages[0].size,
        last=plan.stages[-1].size,
        frames=plan.frames,
        match=plan.match_stage.size if plan.match_stage.size != plan.stages[-1].size else "",
        guidance=f"{config.guidance:g}",
        prompts=markdown_code(shared_prompts(str(values["prompts"]))),
        plan=markdown_lines(("step", "size", "model time"), steps, left=2),
        note=ONE_SIZE if to in LAYOUTS else "",
        code=markdown_block(_code(backbone, plan, _loading(teacher, adapter=adapter)), "python"),
        alone=_alone(config, to, teacher),
        measures=measures,
    )
    return str(card).rstrip() + "\n"


def _metadata(config: StudentConfig, teacher: str | None, base: Path | None, *, adapter: bool) -> ModelCardData:
    """Return the metadata that the Hub reads."""
    packaged = teacher in packaged_teachers()
    relation = None if teacher is None or packaged else "adapter" if adapter else "finetune"
    return ModelCardData(
        base_model=None if packaged else teacher,
        base_model_relation=relation,
        library_name="diffusers",
        license="apache-2.0" if packaged else _license(base),
        pipeline_tag="text-to-video" if family_class(config.family).moving else "text-to-image",
        tags=["rmd", "distillation", "few-step", config.family, *(["lora"] if adapter else [])],
    )


def literal(text: str) -> str:
    """Return text as one Python string literal, in ASCII and on one line."""
    return json.dumps(text) if text.isascii() and text.isprintable() else ascii(text)


def _about(teacher: str | None) -> str:
    if teacher is None:
        return f"A distilled student. {UNNAMED}"
    packaged = ", a teacher that comes with RMD" if teacher in packaged_teachers() else ""
    return f"A student of {markdown_code(teacher)}{packaged}."


def _loading(teacher: str | None, *, adapter: bool) -> str:
    """Return the arguments of `RMDPipeline.from_pretrained`; RMD finds its packaged teachers by itself."""
    arguments = [literal(HERE)]
    if adapter and teacher not in packaged_teachers():
        arguments.append(f"teacher={literal(teacher or TEACHER_HERE)}")
    return ", ".join([*arguments, "dtype=torch.bfloat16"])


def _code(backbone: type[Backbone], plan: StepPlan, loading: str) -> str:
    """Return code that loads the student, samples once at the plan's own size, and writes a file."""
    last = plan.stages[-1]
    size = f"height={last.height}, width={last.width}"
    if backbone.moving:
        imports = ["from diffusers.utils import export_to_video"]
        sample = [
            f'video = pipe("a red ball rolls along the beach", {size}, num_frames={plan.frames}).frames[0]',
            f'export_to_video(video, "sample.mp4", fps={backbone.fps})',
        ]
    else:
        imports = []
        sample = [f'image = pipe("a red ball on the beach", {size}).images[0]', 'image.save("sample.png")']
    load = [f"pipe = RMDPipeline.from_pretrained({loading})", 'pipe.to("cuda")']
    return "\n".join(["import torch", *imports, "", "from rmd import RMDPipeline", "", *load, *sample])


def _alone(config: StudentConfig, to: str, teacher: str | None) -> str:
    """Return code that runs the student without RMD; none if there is no `pipeline.py`, or if RMD has its teacher."""
    adapter = to in ADAPTERS
    if to in LAYOUTS or not config.runs_alone or (adapter and teacher in packaged_teachers()):
        return ""
    base = literal(teacher or TEACHER_HERE) if adapter else literal(HERE)
    load = f"pipe = DiffusionPipeline.from_pretrained({base}, custom_pipeline={literal(HERE)}, trust_remote_code=True)"
    student = [f"pipe.load_student({literal(HERE)})"] if adapter else []
    return markdown_block("\n".join(["from diffusers import DiffusionPipeline", "", load, *student]), "python")


def _license(base: Path | None) -> str:
    """Return the licence that the teacher's card names, or `other` if it names none."""
    path = None if base is None else base / "README.md"
    if path is None or not path.is_file():
        return "other"
    with path.open("rb") as file:
        text = file.read(_MAX_CARD).decode("utf-8", errors="replace")
    _, _, rest = text.partition("---\n")
    front, fence, _ = rest.partition("\n---")
    try:
        values = yaml.safe_load(front) if fence else None
    except (yaml.YAMLError, RecursionError, ValueError):  # dates that do not exist raise ValueError
        return "other"
    name = values.get("license") if isinstance(values, dict) else None
    return name if isinstance(name, str) and _LICENSE.fullmatch(name) else "other"
