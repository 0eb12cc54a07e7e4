"""Lists of prompts, videos and programs in the place of VBench's and T2V-CompBench's, for the tests of commands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from rmd.common.clips import save_clip
from rmd.sample.plans import VideoPlan
from rmd.scores.compbench import CATEGORIES

SUITES = {
    "temporal_flickering": (75, ["temporal_flickering"]),
    "multiple_objects": (82, ["multiple_objects"]),
    "human_action": (100, ["human_action"]),
    "subject_consistency": (72, ["subject_consistency", "dynamic_degree", "motion_smoothness"]),
    "object_class": (79, ["object_class"]),
    "color": (85, ["color"]),
    "appearance_style": (90, ["appearance_style"]),
    "temporal_style": (100, ["temporal_style"]),
    "overall_consistency": (93, ["overall_consistency", "aesthetic_quality", "imaging_quality"]),
    "scene": (86, ["scene", "background_consistency"]),
    "spatial_relationship": (84, ["spatial_relationship"]),
}
"""Number of prompts in each of VBench's files, and the dimensions that are measured on their videos."""
TWICE = "the bund, oil painting"
"""A prompt of two files, as VBench's list has two."""


def entries(sizes: Mapping[str, int] | None = None) -> list[dict[str, object]]:
    """Return a list of prompts like VBench's, with as many prompts in each file, or as many as are given."""
    counts = {name: count for name, (count, _) in SUITES.items()} if sizes is None else sizes
    found = []
    for name, count in counts.items():
        for number in range(count):
            twice = number == 0 and name in ("appearance_style", "overall_consistency")
            prompt = TWICE if twice else f"{name.replace('_', ' ')}, number {number}"
            found.append({"prompt_en": prompt, "dimension": SUITES[name][1]})
    return found


def write_info(folder: Path, sizes: Mapping[str, int] | None = None) -> Path:
    """Write such a list, and return its file."""
    path = folder / "VBench_full_info.json"
    path.write_text(json.dumps(entries(sizes)), encoding="utf-8")
    return path


def write_videos(plan: VideoPlan, folder: Path, *, settings: bool = False) -> None:
    """Write files in the place of a plan's videos, with the settings of `rmd generate` beside them if they have any."""
    for video in plan.videos:
        path = folder / video.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"a video of {video.prompt}".encode())
        if settings:
            made = {"version": "0", "model": "m", "prompt": video.prompt, "seed": video.seed}
            path.with_name(f"{path.name}.json").write_text(json.dumps(made), encoding="utf-8")


def tiny_clip(path: Path, frames: int = 8, fps: int = 8) -> None:
    """Write a clip of two colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_clip([Image.new("RGB", (16, 16), (0, 30 * i, 99)) for i in range(frames)], path, fps=fps)


EVALUATE = """
import argparse, json, os, sys
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("output_path", "full_json_dir", "videos_path"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--dimension", nargs="+", required=True)
args = parser.parse_args()
(dimension,) = args.dimension
print("measuring", dimension, "for", os.environ["MASTER_PORT"])
exec(Path(os.environ["BEHAVIOUR"]).read_text())
names = os.listdir(args.videos_path)
ending = Path(names[0]).suffix
wanted = [e for e in json.loads(Path(args.full_json_dir).read_text()) if dimension in e["dimension"]]
found = [n for e in wanted for i in range(5) if (n := f"{e['prompt_en']}-{i}{ending}") in names]
score = len(found) / (5 * len(wanted))
Path(args.output_path).mkdir(parents=True)
result = {dimension: [score, [{"video_path": n, "video_results": score} for n in found]]}
(Path(args.output_path) / "results_2026-01-01-00:00:00_eval_results.json").write_text(json.dumps(result))
"""
"""A program that takes the arguments of VBench's, finds videos as VBench does, and writes what VBench writes."""
FILTER = """
import json, os, shutil, sys
from pathlib import Path

def main():
    command, *rest = sys.argv[1:]
    assert command == "static_filter"
    args = dict(zip(rest[::2], rest[1::2]))
    out = Path(args["--result_path"]) / "filtered_videos"
    out.mkdir(parents=True)
    still, record = int(os.environ.get("STILL", "5")), {}
    for path in sorted(Path(args["--videos_path"]).glob("*.mp4")):
        prompt = path.stem.rpartition("-")[0]
        known = record.setdefault(prompt, {"static_count": 0, "static_path": []})
        if known["static_count"] < still:
            shutil.copy(path, out / f"{prompt}-{known['static_count']}.mp4")
            known["static_count"] += 1
    (out.parent / "filtered_static_video.json").write_text(json.dumps(record))
"""
"""The same for VBench's filter; of each prompt, `STILL` videos stand still."""


def fake_vbench(folder: Path) -> dict[str, str]:
    """Write these programs as the package `vbench`, and return the variables with which a process imports them.

    `BEHAVIOUR` is a file of code that the first one executes before it looks for videos.
    """
    for name, text in {"launch/evaluate": EVALUATE, "cli/vbench": FILTER}.items():
        path = folder / "vbench" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        (path.parent / "__init__.py").touch()
    (folder / "vbench" / "__init__.py").touch()
    (folder / "behaviour.py").touch()
    return {"PYTHONPATH": str(folder), "BEHAVIOUR": str(folder / "behaviour.py")}


def python_with_vbench(folder: Path) -> Path:
    """Write a program that stands for the interpreter of an environment with these programs; return its file."""
    folder.mkdir(parents=True)
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in fake_vbench(folder / "package").items())
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{variables} exec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def write_prompts(folder: Path, each: int = 100) -> Path:
    """Write lists of prompts like T2V-CompBench's, and return their folder."""
    folder.mkdir(parents=True)
    for category in CATEGORIES:
        lines = [f"{category.name}, number {number}" for number in range(each)]
        (folder / category.prompts).write_text("\n".join(lines), encoding="utf-8")
    return folder


def result_csv(scores: Sequence[object], mean: float | None = None, head: str = "name,prompt,answer,Score") -> str:
    """Return the text of a result file of T2V-CompBench, with its last line if there is a mean."""
    rows = [f'{number:04d},"a prompt, with a comma","an answer",{score}' for number, score in enumerate(scores, 1)]
    return "\n".join([head, *rows, *([] if mean is None else [f"score: ,{mean}"])]) + "\n"
