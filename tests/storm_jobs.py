"""Commands for the kill storms: how each is started and resumed, and the result that it must produce."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import processes
import scoring
import yaml
from benchmarks import python_with_vbench, write_info, write_videos
from families import make_student
from helpers import PROMPTS
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from rmd.sample.plans import write_plan
from rmd.scores.result import read_result
from rmd.scores.vbench_plan import plan_vbench
from rmd.train.checkpoint import checkpoints, read_student_state

MACHINE = ("seconds", "images_per_second", "peak_memory_gb", "data_seconds")
"""Metrics that depend on the machine and its clock; all others are reproducible."""
TIMES = ("seconds_per_image", "seconds_end_to_end", "speedup")
Digest = dict[str, Any]
VERBS = ("train", "cache", "generate", "export", "export-checkpoint", "compare", "eval-images", "init")
EVALUATIONS = ("vbench-run",)
"""Commands that run other programs, whose errors on a full disk are not ours."""
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder.

    Attributes:
        start: returns its arguments, given the folder.
        digest: returns the contents of the folder that must not depend on kills, given the folder.
        resume: arguments to add if an earlier start left something to resume; None if the same command resumes by
            itself.
        begun: returns whether an earlier start left something that `resume` can continue.
        graceful: whether SIGTERM lets the command save its work and end with status 0.
    """

    start: Callable[[Path], list[str]]
    digest: Callable[[Path], Digest]
    resume: tuple[str, ...] = ()
    begun: Callable[[Path], bool] = lambda folder: False
    graceful: bool = False

    def run(self, folder: Path, log: Path) -> BaseProcess:
        """Start the command, resuming an earlier start that was killed."""
        more = self.resume if self.begun(folder) else ()
        return processes.start(*self.start(folder), *more, out=log)

    def finish(self, folder: Path, log: Path, timeout: float = 120) -> float:
        """Run the command to its end, which must be successful; return the seconds it took."""
        began = time.monotonic()
        process = self.run(folder, log)
        process.join(timeout)
        alive = process.is_alive()
        process.kill()
        process.join()
        said = log.with_suffix(".err").read_text(encoding="utf-8")
        assert not alive, f"the command did not end within {timeout} s: {said}"
        assert process.exitcode == 0, said
        return time.monotonic() - began


def make_home(folder: Path) -> Path:
    """Write the inputs of the commands: a tiny teacher and student, prompts, and a recipe."""
    make_student(folder, "sdxl", "lora")
    scoring.write_home(folder)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (folder / "many.txt").write_text("\n".join(f"a red ball number {n}" for n in range(400)), encoding="utf-8")
    recipe = {
        "name": "tiny",
        "family": "sdxl",
        "teacher": str(folder / "teacher"),
        "noise": {
            "kind": "vp", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "rescale_betas_zero_snr": True,
        },
        "plan": {"steps": 4, "sides": [16, 32], "thresholds": [-2.5], "multiple": 4},
        "crossing": {"rule": "block", "beta": 0.5},
        "method": {"guidance": 2.0, "warmup_steps": 1},
        "roles": {"mode": "lora", "rank": 2, "alpha": 4.0},
        "optim": {"student_lr": 1e-3, "fake_lr": 2e-3, "ema": 0.5},
        "train": {"iterations": 24, "batch_size": 2, "log_every": 1, "sample_every": 8, "checkpoint_every": 2},
        "data": {"prompts": str(folder / "prompts.txt")},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    plan = plan_vbench(write_info(folder, {"temporal_flickering": 1, "subject_consistency": 1, "color": 1}))
    write_plan(plan, folder / "plan.json")
    write_videos(plan, folder / "videos")
    python_with_vbench(folder / "vbench")
    return folder


def job_of(verb: str, home: Path) -> Job:
    """Return the command of a name, with the inputs that `make_home` wrote."""
    rmd = ["-m", "rmd"]
    teacher, student, recipe = str(home / "teacher"), str(home / "student"), str(home / "tiny.yaml")
    match verb:
        case "train":
            return Job(
                lambda out: [*rmd, "train", recipe, "--out", str(out), "--threads", "1"], trained, ("--resume",),
                has_checkpoint, graceful=True,
            )  # fmt: skip
        case "cache":
            prompts = str(home / "many.txt")
            options = ["--teacher", teacher, "--shard", "10"]
            return Job(lambda out: [*rmd, "cache", prompts, *options, "--out", str(out)], files)
        case "generate":
            prompts = str(home / "prompts.txt")
            options = ["--model", student, "--prompts", prompts, "-n", "6", "--batch-size", "2", "--stages"]
            return Job(lambda out: [*rmd, "generate", *options, "--out", str(out)], files)
        case "export":
            return Job(lambda out: [*rmd, "export", student, "--to", "fused", "--out", str(out)], files)
        case "export-checkpoint":
            run = str(home / "run")
            return Job(lambda out: [*rmd, "export", run, "--to", "diffusers-lora", "--out", str(out)], files)
        case "init":
            options = ["--gpu", "24", "--sides=16,32", "--replace"]
            return Job(lambda out: [*rmd, "init", teacher, *options, "--out", str(out / "first.yaml")], files)
        case "eval-images":
            return Job(lambda out: [*rmd, *scoring.arguments(home, out)], scored)
        case "vbench-run":
            options = ["--info", str(home / "VBench_full_info.json"), "--python", str(home / "vbench" / "python")]
            command = [*rmd, "eval", "vbench", "run", str(home / "plan.json"), *options]
            return Job(lambda out: [*command, "--videos", str(home / "videos"), "--out", str(out)], evaluated)
    return Job(lambda out: [str(HERE / "storm" / "tiny_compare.py"), str(out)], compared, graceful=True)


def trained(folder: Path) -> Digest:
    """Return the digest of a finished run: its student, its last checkpoint and its reproducible metrics."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [{k: v for k, v in json.loads(line).items() if _is_reproducible(k)} for line in lines]
    newest = checkpoints(folder / "checkpoints")[-1]
    return {
        "student": files(folder / "student"),
        "checkpoint": newest.name,
        "average": {name: tensor.tolist() for name, tensor in read_student_state(newest).items()},
        "metrics": records,
    }


def _is_reproducible(metric: str) -> bool:
    """Return whether a metric does not depend on stops; a run that is stopped also measures itself at the stop."""
    return metric not in MACHINE and not metric.startswith("held_out/")


def has_checkpoint(folder: Path) -> bool:
    return bool(checkpoints(folder / "checkpoints"))


def files(folder: Path) -> Digest:
    """Return a digest of every file below a folder; for safetensors, of its tensors, since headers may be padded."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".rmd.lock" and not path.name.startswith(".rmd-worker"):
            content = path.read_bytes()
            if path.suffix == ".safetensors":
                content = to_bytes(load_file(path))
            contents[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return contents


def evaluated(folder: Path) -> Digest:
    """Return a digest of the results of an evaluation, without the logs."""
    return {name: digest for name, digest in files(folder).items() if not name.startswith("logs/")}


def compared(folder: Path) -> Digest:
    """Return the results of a comparison without their measured times, and the pictures beside them."""
    contents: Digest = {}
    for path in sorted((folder / "cells").glob("*")):
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
            values["row"] = {k: v for k, v in values["row"].items() if k not in TIMES}
            contents[path.name] = values
        else:
            contents[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return contents


def scored(folder: Path) -> Digest:
    """Return the values of all pictures, and their means; the order of the journal depends on kills."""
    result, table = read_result(folder)
    return {"result": result.model_dump(), **{name: values.tolist() for name, values in table.values.items()}}


def leftovers(folder: Path) -> list[str]:
    """Return files and folders that a finished command should not have left behind."""
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".partial", ".previous"))
    ]
