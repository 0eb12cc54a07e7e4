"""The same command started twice at the same time in one folder: one is refused, or both work together."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from storm_jobs import EVALUATIONS, VERBS, Job, job_of, leftovers, make_home

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("two"))


def both(job: Job, folder: Path, apart: float) -> list[tuple[int | None, str]]:
    """Start the command twice, some seconds apart; return the exit codes and what was written to standard error."""
    logs = [folder.with_name(f"{folder.name}-{number}") for number in (1, 2)]
    started = [job.run(folder, logs[0])]
    time.sleep(apart)
    started.append(job.run(folder, logs[1]))
    for process in started:
        process.join(240)
    return [
        (process.exitcode, log.with_suffix(".err").read_text(encoding="utf-8"))
        for process, log in zip(started, logs, strict=True)
    ]


@pytest.mark.parametrize("apart", [0.0, 1.0])
@pytest.mark.parametrize("verb", (*VERBS, *EVALUATIONS))
def test_two_at_once_do_not_mix(verb: str, apart: float, home: Path) -> None:
    job, whole, folder = job_of(verb, home), home / f"{verb}-whole", home / f"{verb}-{apart:.0f}"
    if verb == "export-checkpoint" and not (home / "run").exists():
        job_of("train", home).finish(home / "run", home / "log")
    if not whole.exists():
        job.finish(whole, home / "log")
    ended = both(job, folder, apart)
    assert 0 in [code for code, _ in ended], ended
    for code, said in ended:
        assert code == 0 or "another process is writing to" in said or "holds a run already" in said, said
        assert "Traceback" not in said
    assert job.digest(folder) == job.digest(whole)
    assert not leftovers(folder)
