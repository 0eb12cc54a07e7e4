"""Builds the inputs of the fuzzed commands: a valid example of every kind of file, from tiny random models."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
from benchmarks import result_csv, write_info, write_videos
from families import make_student
from helpers import PROMPTS, make_recipe, tiny_pipeline
from PIL import Image
from processes import SERVER

from rmd.cli.app import main
from rmd.compare.run import Line, Number, TableResult
from rmd.evaluation.versions import versions
from rmd.recipes.schema import to_yaml
from rmd.sample.plans import write_plan
from rmd.scores.compbench import CATEGORIES
from rmd.scores.vbench import DIMENSIONS
from rmd.scores.vbench_plan import plan_vbench


def build_world(folder: Path) -> None:
    """Fill a new folder with recipes, prompts, teachers, students, a run, a cache, albums, rows and tables.

    Raises:
        RuntimeError: a command that should work on them did not.
    """
    folder.mkdir(parents=True)
    _prompts(folder / "prompts")
    _images(folder / "images")
    tiny_pipeline().save_pretrained(folder / "teacher")
    recipe = make_recipe(
        folder / "prompts" / "p.txt",
        train={"iterations": 2, "checkpoint_every": 2, "keep_last": 1, "sample_every": 1000, "log_every": 1},
    ).model_copy(update={"teacher": str(folder / "teacher")})
    text = to_yaml(recipe)
    for name in ("recipe", "parent"):
        (folder / name).mkdir()
        (folder / name / "r.yaml").write_text(text, encoding="utf-8")
    (folder / "parent" / "child.yaml").write_text("extends: ./r.yaml\ntrain: {seed: 3}\n", encoding="utf-8")
    for name, family, mode in (("lora", "sdxl", "lora"), ("full", "sdxl", "full"), ("wan", "wan", "lora")):
        make_student(folder / f"{name}-parts", family, mode)
        (folder / f"{name}-parts" / "student").rename(folder / name)
    made = str(folder / "recipe" / "r.yaml")
    _run(["train", made, "--out", str(folder / "run"), "--threads", "1"])
    _run(["cache", "--recipe", made, "--out", str(folder / "cache"), "--shard", "2"])
    _run(["generate", "a red ball", "--model", str(folder / "lora"), "--out", str(folder / "album")])
    _run(["generate", "a red ball", "--model", str(folder / "wan"), "--format", "webp", "--out", str(folder / "clips")])
    _run(["eval", str(folder / "lora"), "--samples", "6", "--out", str(folder / "rows")])
    _run(["export", str(folder / "lora"), "--to", "diffusers-lora", "--out", str(folder / "exported")])
    _table(folder / "tables")
    _videos(folder / "video")


def _run(arguments: list[str]) -> None:
    status = main(arguments)
    if status != 0:
        raise RuntimeError(f"a command that should work ended with status {status}: rmd {' '.join(arguments)}")


def _prompts(folder: Path) -> None:
    folder.mkdir()
    records = [{"prompt": text, "number": number} for number, text in enumerate(PROMPTS)]
    (folder / "p.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    (folder / "p.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (folder / f"p{suffix}").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["prompt", "number"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "p.parquet")
    captions = folder / "captions"
    captions.mkdir()
    for number, text in enumerate(PROMPTS):
        (captions / f"{number}.txt").write_text(text, encoding="utf-8")
    with tarfile.open(folder / "p.tar", "w") as shard:
        for path in sorted(captions.iterdir()):
            shard.add(path, path.name)
    shutil.rmtree(captions)


def _images(folder: Path) -> None:
    folder.mkdir()
    for number, text in enumerate(PROMPTS[:2]):
        Image.new("RGB", (40, 36), (90 * number, 40, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")


def _table(folder: Path) -> None:
    """Write a table of `rmd compare` without computing anything."""
    folder.mkdir()
    number = Number(mean=0.5, low=0.4, high=0.6, difference=None, p=None, values=(0.5,))
    line = Line(
        name="rmd", label="RMD", plan="32x32 x2, 64x64 x2", nfe=4.0, seconds_per_image=0.02, speedup=1.0,
        iterations=2, evaluations=100.0, numbers={"attributes": number}, parts={"colour": number}, paper={},
        prompts=("a red ball",), picture=None,
    )  # fmt: skip
    table = TableResult(
        name="roles", title="Roles", source="none", question="which?", against="rmd", budget="small",
        evaluations=100, seeds=(0,), samples=128, backbones={"sdxl": (line,)}, versions=versions(),
    )  # fmt: skip
    (folder / "roles.json").write_text(table.model_dump_json(indent=1), encoding="utf-8")


def _videos(folder: Path) -> None:
    """Write a list of prompts, a plan with its videos, and results, of VBench and of T2V-CompBench."""
    (folder / "results").mkdir(parents=True)
    (folder / "csv").mkdir()
    plan = plan_vbench(write_info(folder, {"color": 1, "scene": 1}))
    write_plan(plan, folder / "plan.json")
    write_videos(plan, folder / "videos", settings=True)
    for each in DIMENSIONS:
        content = {each.name: [0.5, [{"video_path": "x.mp4", "video_results": 0.5}]]}
        (folder / "results" / f"{each.name}.json").write_text(json.dumps(content), encoding="utf-8")
    for category in CATEGORIES:
        for ending in category.results:
            head = "id,x,y,Score_1" if len(category.results) > 1 else "name,prompt,answer,Score"
            text = result_csv([1.0] * (100 // len(category.results)), head=head)
            (folder / "csv" / f"m{ending}").write_text(text, encoding="utf-8")


def in_child(folder: Path) -> Path:
    """Build the world in a separate process, whose output is not shown; return the folder.

    Raises:
        RuntimeError: the world could not be built.
    """
    said = folder.with_suffix(".log")
    process = SERVER.Process(target=_build_aloud, args=(folder, said))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the inputs could not be made:\n{said.read_text(encoding='utf-8')}")
    return folder


def _build_aloud(folder: Path, said: Path) -> None:
    """Build the world, and redirect all output to the file `said`."""
    with said.open("w", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        build_world(folder)
