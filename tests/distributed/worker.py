"""Started by test_two_ranks.py in each of two processes: runs jobs, whose results the first process writes.

torchrun --nproc-per-node 2 worker.py PROMPTS OUT UNTIL JOB ...

Runs that change their number of processes go to iteration UNTIL.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from families import TINY  # noqa: E402
from jobs import JOBS, RESHARDED, UNLOADED, Job, go_on, load_in_parts, run  # noqa: E402

from rmd.recipes.groups import ParallelConfig  # noqa: E402
from rmd.train.parallel import place, processes  # noqa: E402


def asked(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if job.name in sys.argv[4:]]


if __name__ == "__main__":
    prompts, out, until = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    # diffusers divides by this number where processes share tokens, and torch counts no CPU
    torch.accelerator.device_count = lambda: 1
    cpu = torch.device("cpu")
    with processes(ParallelConfig(), cpu) as started:
        for job in asked(JOBS):
            parallel = place(ParallelConfig(dp_replicate=job.dp_replicate, context_parallel=job.context_parallel), cpu)
            results = run(job, prompts, out / "run", parallel)
            if started.main:
                torch.save(results, out / f"{job.name}.pt")
        for job in asked(UNLOADED):
            parallel = place(ParallelConfig(dp_replicate=job.dp_replicate), cpu)
            teacher = out / f"teacher-{job.family}"
            if started.main and not teacher.exists():
                TINY[job.family]().pipe.save_pretrained(teacher, max_shard_size="20KB")
            started.any(False)  # until it is written
            results = load_in_parts(job, prompts, teacher, parallel)
            if started.main:
                torch.save(results, out / f"{job.name}.pt")
        for job in asked(RESHARDED):
            state = go_on(job, prompts, out / f"{job.name}-run", started, until=until)
            if started.main:
                torch.save(state, out / f"{job.name}.pt")
