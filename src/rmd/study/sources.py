"""The pictures or clips of the systems that a study compares, matched by prompt and seed, or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from rmd.common.clips import SUFFIXES as CLIPS
from rmd.common.errors import RMDError, shown
from rmd.data.prompts import read_captions
from rmd.sample.found import by_prompt_and_seed, find_samples


@dataclass(frozen=True)
class Item:
    """One prompt with the file of each system."""

    prompt: str
    files: tuple[Path, ...]


def find_items(
    sources: Sequence[tuple[str, str]], *, prompts: str | None
) -> tuple[Literal["pictures", "clips"], list[Item]]:
    """Find what every system made of the same prompts.

    The samples of `rmd generate` are matched by prompt and seed; of each prompt, the lowest seed is used. All others
    are matched by file name, and need a file of prompts, in the order of the sorted names.

    Args:
        sources: name of each system, and its folder or a pattern of files.
        prompts: a file of prompts for samples without settings of their own.

    Returns:
        What is compared, and the prompts with their files in the order of the systems.

    Raises:
        RMDError: there are fewer than two systems, two of them have one name, one has no samples, or they do not match.
    """
    names = [name for name, _ in sources]
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise RMDError("a study compares two or more systems with names of their own: give --system NAME=DIR for each")
    files = {name: find_samples(place) for name, place in sources}
    suffixes = {name: {path.suffix.lower().replace(".jpeg", ".jpg") for path in paths} for name, paths in files.items()}
    if len(set().union(*suffixes.values())) > 1:
        kinds = "; ".join(f"{name} has {', '.join(sorted(kinds))}" for name, kinds in suffixes.items())
        raise RMDError(f"raters could tell systems by the formats of their files ({kinds}): use one format for all")
    clips = next(iter(files.values()))[0].suffix.lower() in CLIPS and not _still(files)
    keyed = {name: by_prompt_and_seed(paths) for name, paths in files.items()}
    if prompts is None and all(found is not None for found in keyed.values()):
        items = _matched({name: found for name, found in keyed.items() if found is not None})
    else:
        items = _by_name(files, prompts)
    return "clips" if clips else "pictures", items


def _still(files: Mapping[str, Sequence[Path]]) -> bool:
    """Return whether the files are WebP pictures that do not move."""
    first = next(iter(files.values()))[0]
    if first.suffix.lower() != ".webp":
        return False
    try:
        with Image.open(first, formats=("WEBP",)) as image:
            return getattr(image, "n_frames", 1) == 1
    except OSError as error:
        raise RMDError(f"{first} is not a picture, or is damaged: remove it") from error


def _matched(keyed: Mapping[str, Mapping[tuple[str, int], Path]]) -> list[Item]:
    first, *others = keyed
    for name in others:
        different = sorted(keyed[first].keys() ^ keyed[name].keys())
        if different:
            prompt, seed = different[0]
            raise RMDError(
                f"{first} and {name} do not have the same samples: only one has {shown(prompt)} with seed {seed}"
            )
    lowest: dict[str, int] = {}
    for prompt, seed in keyed[first]:
        lowest[prompt] = min(seed, lowest.get(prompt, seed))
    return [Item(prompt, tuple(found[prompt, seed] for found in keyed.values())) for prompt, seed in lowest.items()]


def _by_name(files: Mapping[str, Sequence[Path]], prompts: str | None) -> list[Item]:
    first, *others = files
    stems = [path.stem for path in files[first]]
    for name in others:
        different = sorted(set(stems) ^ {path.stem for path in files[name]})
        if different:
            raise RMDError(f"{first} and {name} do not have files of the same names: only one has {different[0]}")
    if prompts is None:
        raise RMDError(
            "these files do not say what their prompts are: give --prompts FILE, in the order of their names"
        )
    texts = read_captions(prompts)
    if len(texts) != len(stems):
        raise RMDError(f"{prompts} has {len(texts)} prompts for {len(stems)} files: it needs one for each")
    return [Item(text, each) for text, each in zip(texts, zip(*files.values(), strict=True), strict=True)]
