"""The plan of VBench's videos, from the user's own copy of its list of prompts, `VBench_full_info.json`.

VBench looks for `PROMPT-0.mp4` to `PROMPT-4.mp4`. Of the prompts of temporal flickering it wants 25 videos, from which
its filter picks five that stand still. Two prompts occur twice in the list, for different dimensions, so the videos lie
in one folder for each of VBench's prompt files, as in its own `evaluate.sh`: 946 prompts, 6,230 videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from rmd.common.errors import RMDError, one_of, shown
from rmd.common.files import MAX_JSON, read_errors
from rmd.core.randomness import check_seeds
from rmd.data.prompt_set import PromptSet
from rmd.data.prompts import read_captions
from rmd.sample.plans import SUFFIX, PlannedVideo, VideoPlan
from rmd.scores.vbench import DIMENSIONS, folder_of
from rmd.scores.weights import sha256

PROMPTS = 946
"""Number of prompts in VBench's list."""
FLICKERING = "temporal_flickering"
EACH, EACH_FLICKERING = 5, 25
"""Number of videos of each prompt, and of each prompt of temporal flickering."""
LICENCE: str | None = "Apache-2.0"
"""Licence of the prompts of the list."""
LAYOUT = "FOLDER/PROMPT-INDEX.mp4"
NAMES = tuple(dimension.name for dimension in DIMENSIONS)


@dataclass(frozen=True)
class Entry:
    """One prompt of VBench's list, and the folder of its videos."""

    prompt: str
    folder: str

    @property
    def each(self) -> int:
        """Number of videos."""
        return EACH_FLICKERING if self.folder == FLICKERING else EACH


def read_info(path: Path) -> list[Entry]:
    """Read VBench's list of prompts, `VBench_full_info.json`.

    Raises:
        RMDError: the file cannot be read, or is not this list.
    """
    with read_errors(path):
        if path.stat().st_size > MAX_JSON:
            raise RMDError(f"{path} is too large for a list of prompts: at most {MAX_JSON // 2**20} MB are read")
        content = path.read_bytes()
    try:
        values = from_json(content)
    except ValueError as error:
        raise RMDError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, list) or not values:
        raise RMDError(f"{path} is no list of prompts: give VBench's VBench_full_info.json")
    return [_entry(value, f"{path}, prompt {number}") for number, value in enumerate(values, start=1)]


def plan_vbench(info: Path, *, prompts: str | None = None, seed: int = 0, dimensions: Sequence[str] = ()) -> VideoPlan:
    """Plan VBench's videos, each with a seed of its own.

    Args:
        info: VBench's list of prompts.
        prompts: a file of prompts that the model is given instead, one for each of the list, such as longer ones; the
            files keep the names of VBench's own.
        seed: the first seed; each further video of the whole list has the next one.
        dimensions: plan only the videos of these dimensions, with the same seeds; by default all.

    Raises:
        RMDError: the list or the prompts cannot be read or do not belong together, or a dimension is unknown.
    """
    entries, sources = read_info(info), {info.name: sha256(info)}
    texts = [entry.prompt for entry in entries]
    name, licence = "VBench", LICENCE
    if prompts is not None:
        texts, source = read_captions(prompts), Path(prompts)
        if len(texts) != len(entries):
            raise RMDError(f"{prompts} has {len(texts)} prompts, and {info} has {len(entries)}: it needs one for each")
        name, licence = f"VBench, {source.name}", None
        sources[source.name] = sha256(source)
    check_seeds(seed, sum(entry.each for entry in entries))
    videos: list[PlannedVideo] = []
    for entry, text in zip(entries, texts, strict=True):
        for index in range(entry.each):
            path = f"{entry.folder}/{entry.prompt}-{index}{SUFFIX}"
            videos.append(PlannedVideo(path=path, prompt=text, seed=seed + len(videos)))
    plan = VideoPlan(
        benchmark="vbench", layout=LAYOUT, prompts=PromptSet.of(texts, name, licence), sources=sources,
        videos=tuple(videos),
    )  # fmt: skip
    names = [one_of("dimension", each, NAMES) for each in dimensions]
    return plan.below(list(dict.fromkeys(map(folder_of, names)))) if names else plan


def _entry(value: Any, where: str) -> Entry:
    """Return the prompt and the folder that an item of the list names."""
    prompt, dimensions = (value.get(key) if isinstance(value, dict) else None for key in ("prompt_en", "dimension"))
    if not isinstance(prompt, str) or not isinstance(dimensions, list) or not dimensions:
        raise RMDError(f"{where} has no prompt_en and dimension: give VBench's VBench_full_info.json")
    folders = {folder_of(one_of(f"dimension of {where}:", name, NAMES)) for name in dimensions}
    if len(folders) > 1:
        raise RMDError(f"{where} is of dimensions that share no videos, {shown(dimensions)}: give VBench's own list")
    return Entry(prompt, folders.pop())
