"""`rmd serve` under load: clients at once, nonsense, clients that leave, and a server that is killed in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest
from load.storm_of_requests import Figures, storm
from serving import packaged_student

MOST_GROWTH = 32 * 2**20
"""Largest growth of the memory of a server under load, in bytes, once it has worked for a while."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged_student(tmp_path_factory.mktemp("student"))


def check(figures: Figures, requests: int) -> None:
    print(f"\n{figures}")
    assert figures.lost == [] and figures.status == 0
    assert sum(figures.answers.values()) == requests and figures.answers["picture", 200] > requests // 5
    assert figures.pictures > figures.distinct


def test_a_storm_of_requests(student: Path, tmp_path: Path) -> None:
    check(storm(student, tmp_path, clients=6, requests=40), 40)


@pytest.mark.slow
def test_500_requests_from_20_clients(student: Path, tmp_path: Path) -> None:
    figures = storm(student, tmp_path, clients=20, requests=500)
    check(figures, 500)
    assert figures.memory[-1] - figures.memory[1] < MOST_GROWTH
