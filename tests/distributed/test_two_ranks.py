"""Two processes compute what one does for the same batch, however weights and batch are divided."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_same, write_prompts
from processes import run_ranks

sys.path.insert(0, str(Path(__file__).parent))
from jobs import JOBS, RESHARDED, UNLOADED, Job, go_on, run

from rmd.train.parallel import Parallel

HERE = Path(__file__).parent


def jobs(all_of_them: list[Job]) -> pytest.MarkDecorator:
    marked = [pytest.param(job, id=job.name, marks=[pytest.mark.slow] if job.slow else []) for job in all_of_them]
    return pytest.mark.parametrize("job", marked)


def names_of(request: pytest.FixtureRequest) -> set[str]:
    """Return the names of the jobs whose tests were selected."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    return {item.callspec.params["job"].name for item in tests}


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run in two processes the jobs of the tests that were selected."""
    folder: Path = tmp_path_factory.mktemp("two")
    prompts = write_prompts(folder)
    done = run_ranks(str(HERE / "worker.py"), str(prompts), str(folder), "1", *sorted(names_of(request)))
    assert done.returncode == 0, done.stderr
    return folder


@jobs(JOBS)
def test_two_processes_equal_one(job: Job, made: Path, tmp_path: Path) -> None:
    two = torch.load(made / f"{job.name}.pt")
    one = run(job, made / "prompts.txt", tmp_path, Parallel())
    assert one["state"].keys() == two["state"].keys()
    if (
        job.dtype == "bfloat16"
    ):  # sums of other batches are rounded otherwise, and what is trained is not rounded at all
        for alone, together in zip(one["values"], two["values"], strict=True):
            assert alone == pytest.approx(together, rel=0.05)
        assert {tensor.dtype for tensor in two["state"].values()} == {torch.float32}
        return
    for alone, together in zip(one["values"], two["values"], strict=True):
        assert alone == pytest.approx(together, rel=1e-5, abs=1e-5)
    worst = {name: float((two["state"][name] - tensor).abs().max()) for name, tensor in one["state"].items()}
    assert not {name: value for name, value in worst.items() if value > 1e-5}


@jobs(UNLOADED)
def test_weights_read_in_parts_are_those_of_the_teacher(job: Job, made: Path) -> None:
    results = torch.load(made / f"{job.name}.pt")
    assert results["values"][0] == results["values"][1]
    assert_same(*results["states"])
    if job.dp_replicate == 1:
        assert sum(results["held"]) / len(results["held"]) < 0.6  # a half, except for rows that cannot be divided


@pytest.fixture(scope="module")
def resharded(request: pytest.FixtureRequest, made: Path) -> Path:
    """Make the selected tests' runs, which two processes start, one resumes, and two finish."""
    selected = [job for job in RESHARDED if job.name in names_of(request)]
    for job in selected:
        go_on(job, made / "prompts.txt", made / f"{job.name}-run", Parallel(), until=2)
    done = run_ranks(
        str(HERE / "worker.py"), str(made / "prompts.txt"), str(made), "3", *(job.name for job in selected)
    )
    assert done.returncode == 0, done.stderr
    return made


@jobs(RESHARDED)
def test_a_run_of_two_then_one_then_two_processes_equals_that_of_one(job: Job, resharded: Path, tmp_path: Path) -> None:
    state = torch.load(resharded / f"{job.name}.pt")
    wanted = go_on(job, resharded / "prompts.txt", tmp_path / "run", Parallel(), until=3)
    assert state.keys() == wanted.keys()
    worst = {name: float((state[name] - tensor).abs().max()) for name, tensor in wanted.items()}
    assert not {name: value for name, value in worst.items() if value > 1e-5}
    assert (
        max(
            float((tensor - wanted[f"average{name[7:]}"]).abs().max())
            for name, tensor in wanted.items()
            if name.startswith("student/") and f"average{name[7:]}" in wanted
        )
        > 1e-4
    )  # something has moved
