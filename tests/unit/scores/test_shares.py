"""Scoring in several processes with small real networks: nothing twice, and one result, even if one is killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from processes import TIMEOUT, run_ranks, start
from scoring import EACH, METRICS, PROMPTS, arguments, write_home

from rmd.cli.app import main
from rmd.scores.journal import journal_name
from rmd.scores.result import RESULT, read_result

WORKER = str(Path(__file__).parents[2] / "score_worker.py")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures, small networks, and the result of a single process."""
    home = tmp_path_factory.mktemp("home")
    write_home(home)
    assert main(arguments(home, home / "whole")) == 0
    return home


def keys(folder: Path) -> list[str]:
    """Return the keys of all values in all journals of a folder."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)[0] for line in lines]


def same_as_whole(home: Path, out: str) -> None:
    """Check that a result is that of the single process, and that no value was computed twice."""
    (result, table), (whole, values) = read_result(home / out), read_result(home / "whole")
    assert result == whole
    for name in METRICS:
        np.testing.assert_array_equal(table.values[name], values.values[name])
    found = keys(home / out)
    assert len(found) == len(set(found)) == 2 * PROMPTS * EACH


def test_a_worker_that_is_killed_goes_on_and_the_result_is_that_of_one_process(home: Path, tmp_path: Path) -> None:
    out = home / "killed"
    workers = [
        start(WORKER, batches, *arguments(home, out, "--worker", f"{number}/2"), out=tmp_path / str(number))
        for number, batches in enumerate(("1000", "4"))
    ]
    for worker in workers:
        worker.join(TIMEOUT)
    assert [worker.exitcode for worker in workers] == [0, -signal.SIGKILL]
    said = (tmp_path / "0.out").read_text(encoding="utf-8")
    assert said == "worker 0 of 2 has scored its share; other workers have not finished yet\n"
    assert not (out / RESULT).exists()
    journals = [out / journal_name((number, 2)) for number in (0, 1)]
    finished = journals[0].read_bytes()
    assert len(journals[1].read_text(encoding="utf-8").splitlines()) == 3
    # The next line was not written to its end.
    journals[1].write_text(journals[1].read_text(encoding="utf-8") + '["0123', encoding="utf-8")
    assert main(arguments(home, out, "--worker", "1/2")) == 0
    assert journals[0].read_bytes() == finished
    lines = journals[1].read_text(encoding="utf-8").splitlines()
    journals[1].write_text("".join(f"{line}\n" for line in lines if line != '["0123'), encoding="utf-8")
    same_as_whole(home, "killed")


def test_processes_of_torchrun_have_a_share_each_and_the_last_one_has_the_result(home: Path) -> None:
    ended = run_ranks("-m", "rmd", *arguments(home, home / "ranks"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("result: ") in (1, 2)  # both, if they end at the same moment
    same_as_whole(home, "ranks")
    assert {path.name for path in (home / "ranks").glob("*.jsonl")} == {journal_name((i, 2)) for i in (0, 1)}
    # Only the first process shows its progress, that of its own share.
    assert f"diversity over seeds: {4 * EACH}/{4 * EACH}" in ended.stderr
    assert f"{3 * EACH}/{3 * EACH}" not in ended.stderr


def test_an_error_of_one_process_is_printed_by_it(home: Path, tmp_path: Path) -> None:
    """The others do not meet the damaged picture, which is in the second one's share."""
    damaged = tmp_path / "home"
    for path in (home / "pictures").iterdir():
        (damaged / "pictures").mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        (damaged / "pictures" / path.name).write_bytes(content[:-40] if path.name == "2.png" else content)
    (damaged / "weights").symlink_to(home / "weights")
    ended = run_ranks("-m", "rmd", *arguments(damaged, damaged / "out"))
    assert ended.returncode == 1
    (sentence,) = (line for line in ended.stderr.splitlines() if line.startswith("rmd: "))
    assert "2.png is not a picture, or is damaged" in sentence
    assert not (damaged / "out" / RESULT).exists()
