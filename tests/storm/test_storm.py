"""Kill storms: a command that is killed at random moments and restarted produces the same files, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from storm_jobs import EVALUATIONS, VERBS, Job, job_of, leftovers, make_home

KILLS = 20
"""Number of SIGKILLs per command in the full storm."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("storm"))


@pytest.fixture(scope="module")
def whole(home: Path) -> dict[str, tuple[float, object]]:
    """Return a dictionary, filled on demand, of each command's undisturbed duration and the digest of its result."""
    return {}


def undisturbed(verb: str, home: Path, whole: dict[str, tuple[float, object]]) -> tuple[Job, float, object]:
    job = job_of(verb, home)
    if verb == "export-checkpoint" and not (home / "run").exists():
        job_of("train", home).finish(home / "run", home / "run.log")
    if verb not in whole:
        job.finish(home / f"{verb}-warm", home / "log")  # imports and caches are warm afterwards
        shutil.rmtree(home / f"{verb}-warm")
        seconds = job.finish(home / f"{verb}-whole", home / "log")
        whole[verb] = seconds, job.digest(home / f"{verb}-whole")
        assert not leftovers(home / f"{verb}-whole")
    return job, *whole[verb]


def storm(job: Job, seconds: float, folder: Path, *, kills: int, number: int, seed: int) -> list[int | None]:
    """Start a command and stop it with a signal, again and again, at moments spread over its whole duration.

    Returns:
        The exit codes; a command that finished before its signal is started anew in an empty folder.
    """
    draws, codes = random.Random(seed), []
    for kill in range(kills):
        process = job.run(folder, folder.with_suffix(".log"))
        # Later kills come later, so that the last parts of the work are reached, too.
        time.sleep(draws.uniform(0.0, seconds) * (0.3 + 0.7 * kill / kills))
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)
        process.join(60)
        codes.append(process.exitcode)
        if process.exitcode == 0 and number == signal.SIGKILL:
            shutil.rmtree(folder, ignore_errors=True)
    return codes


def check(verb: str, home: Path, whole: dict[str, tuple[float, object]], *, kills: int, number: int) -> None:
    job, seconds, expected = undisturbed(verb, home, whole)
    folder = home / f"{verb}-{number}-{kills}"
    codes = storm(job, seconds, folder, kills=kills, number=number, seed=kills)
    good = (0, -number, 128 + number) if number == signal.SIGTERM else (0, -number)
    said = folder.with_suffix(".err").read_text(encoding="utf-8") if folder.with_suffix(".err").exists() else ""
    assert all(code in good for code in codes), (codes, said)
    if number == signal.SIGKILL:
        assert codes.count(-number) >= kills / 3, codes  # otherwise the storm has tested nothing
    job.finish(folder, home / "log")
    assert job.digest(folder) == expected
    assert not leftovers(folder)


@pytest.mark.slow
@pytest.mark.parametrize("verb", (*VERBS, *EVALUATIONS))
def test_twenty_kills_lose_nothing(verb: str, home: Path, whole: dict[str, tuple[float, object]]) -> None:
    check(verb, home, whole, kills=KILLS, number=signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("verb", (*VERBS, *EVALUATIONS))
def test_sigterm_loses_nothing(verb: str, home: Path, whole: dict[str, tuple[float, object]]) -> None:
    check(verb, home, whole, kills=3, number=signal.SIGTERM)


@pytest.mark.parametrize("verb", ["generate", "cache", *EVALUATIONS])
def test_three_kills_lose_nothing(verb: str, home: Path, whole: dict[str, tuple[float, object]]) -> None:
    check(verb, home, whole, kills=3, number=signal.SIGKILL)
