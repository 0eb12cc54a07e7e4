"""Building a cache: kills at any moment, full disks, several processes, and prompts that cannot be encoded."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from caches import PROMPTS, Encoding, build, contents
from helpers import tiny_sdxl

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.common.files import locked
from rmd.common.workers import worker_lock
from rmd.data import cache_files
from rmd.data.cache import PromptCache, build_cache, encoders_key, verify_cache
from rmd.data.cache_files import INDEX, META, NULL, note_name, shard_name
from rmd.models import Cond


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    assert build(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def started() -> Iterator[Callable[..., Any]]:
    """Return a function that starts processes, which are killed at the end of the test."""
    running = []

    def start(target: Callable[..., object], *arguments: object, **options: object) -> Any:
        process = multiprocessing.get_context("fork").Process(target=target, args=arguments, kwargs=options)
        process.start()
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.join()


def test_a_build_killed_at_any_moment_goes_on_to_the_same_bits(
    cache: Path, tmp_path: Path, started: Callable[..., Any]
) -> None:
    draw, killed = random.Random(0), 0
    for attempt in range(3):
        folder = tmp_path / f"parts{attempt}"
        for tries in count():
            process = started(build, folder, pause=0.002)
            process.join(draw.uniform(0.001, 0.06) * 1.2**tries)  # a slow machine ends it, too
            if process.exitcode is None:
                process.kill()
                killed += 1
            process.join()
            if process.exitcode == 0:
                break
        assert contents(folder) == contents(cache)
        assert len(PromptCache(folder)) == len(PROMPTS) and verify_cache(folder) == 14
    assert killed > 3


def test_what_a_killed_process_can_leave_is_no_obstacle(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in (f".{META}.partial", f".{NULL}.partial", f".{shard_name(0)}.partial", NULL):
        (folder / name).write_bytes(b"half")
    assert build(folder)
    assert contents(folder) == contents(cache)


def test_workers_at_once_build_one_cache(cache: Path, tmp_path: Path, started: Callable[..., Any]) -> None:
    folder = tmp_path / "shared"
    workers = [started(build, folder, pause=0.01, worker=(i, 3)) for i in range(3)]
    for process in workers:
        process.join(60)
    assert [process.exitcode for process in workers] == [0, 0, 0]
    assert contents(folder) == contents(cache) and len(PromptCache(folder)) == len(PROMPTS)


@pytest.mark.parametrize("other", [(1, 3), (0, 2), (1, 4)], ids=["the same", "another number", "another number"])
def test_two_processes_for_the_same_shards_are_refused(other: tuple[int, int], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert not build(folder, worker=(0, 3))
    with (
        locked(folder, worker_lock((1, 3))),
        pytest.raises(RMDError, match=r"^another process is writing to .*cache: wait until it has finished"),
    ):
        build(folder, worker=other)
    assert not build(folder, worker=(1, 3))


def test_a_second_build_of_other_prompts_is_refused(cache: Path, tmp_path: Path) -> None:
    before = contents(cache)
    with pytest.raises(RMDError, match=r"holds a cache of other prompts or other encoders: choose another --out$"):
        build(cache, prompts=PROMPTS[1:])
    assert contents(cache) == before
    assert build(cache) and contents(cache) == before


def test_a_folder_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RMDError, match="is neither empty nor a cache"):
        build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        build(tmp_path / "cache")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / "cache" / name).stat().st_mode) for name in contents(tmp_path / "cache")}
    assert modes == {0o640}


def _limited(folder: Path, size: int, answers: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        build(folder)
    except RMDError as error:
        answers.put(str(error))
    else:
        answers.put("")


@pytest.mark.parametrize("size", [0, 100, 400, 1500, 4000])
def test_a_full_disk_is_one_sentence_and_the_build_goes_on(
    size: int, cache: Path, tmp_path: Path, started: Callable[..., Any]
) -> None:
    folder, answers = tmp_path / "full", multiprocessing.get_context("fork").SimpleQueue()
    process = started(_limited, folder, size, answers)
    process.join(60)
    answer = answers.get()
    assert answer.startswith(f"cannot write to {folder}/") and answer.endswith(
        "; put that right and run the command again"
    )
    assert "\n" not in answer and process.exitcode == 0
    assert build(folder) and contents(folder) == contents(cache)


@pytest.mark.parametrize("what", [META, NULL, INDEX, shard_name(2), note_name(2)])
def test_a_disk_that_is_full_at_any_file_is_one_sentence(
    what: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = cache_files.replacing

    def full(path: Path) -> Any:
        if path.name == what:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(path)

    with monkeypatch.context() as patch, pytest.raises(RMDError) as caught:
        patch.setattr(cache_files, "replacing", full)
        build(tmp_path / "full")
    assert str(caught.value) == (
        f"cannot write to {tmp_path / 'full' / what}: the disk is full; put that right and run the command again"
    )
    assert build(tmp_path / "full") and contents(tmp_path / "full") == contents(cache)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "cache", tmp_path / "file", Path("/proc/cache")):
        with pytest.raises(RMDError, match=r"^cannot write to "):
            build(folder)


def test_a_cache_may_move_and_so_may_its_prompts_and_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache is identified by the contents of its files, wherever they are."""
    monkeypatch.chdir(tmp_path)
    tiny_sdxl(two_encoders=True).pipe.save_pretrained("teacher")
    Path("p.jsonl").write_text('{"words": "a red ball"}\n{"words": "a blue box"}\n', encoding="utf-8")
    common = ["--column", "words", "--device", "cpu", "--out"]
    assert main(["cache", "p.jsonl", "--teacher", "teacher", *common, "cache"]) == 0
    for old, new in (("teacher", "moved"), ("p.jsonl", "other.jsonl"), ("cache", "elsewhere")):
        shutil.move(old, new)
    before = contents(Path("elsewhere"))
    assert main(["cache", "other.jsonl", "--teacher", "moved", *common, "elsewhere"]) == 0
    assert contents(Path("elsewhere")) == before
    assert main(["cache", "--verify", "--out", "elsewhere"]) == 0
    capsys.readouterr()
    for arguments, sentence in (
        (["other.jsonl", "--teacher", "moved", "--out", "x"], "name one with --column"),
        (["other.jsonl", "--teacher", "moved", "--set", "data.column=words"], "--set changes a recipe: give --recipe"),
        (["", "--teacher", "moved"], "give PROMPTS and --teacher ID, or --recipe RECIPE"),
        (["other.jsonl", "--recipe", "sdxl", "--half"], "--half goes with --teacher"),
    ):
        assert main(["cache", *arguments]) == 1
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1


def test_values_that_are_not_finite_are_refused_by_the_prompts_name(tmp_path: Path) -> None:
    class Overflowing(Encoding):
        def encode(self, prompts: Sequence[str]) -> Cond:
            cond = super().encode(prompts)
            for number, prompt in enumerate(prompts):
                if prompt == PROMPTS[7]:
                    cond.tensors["letters"][number, 3, 1] = float("inf")
            return cond

    with pytest.raises(RMDError, match=rf"not finite for the prompt '{PROMPTS[7]}': encode in float32"):
        build_cache(Overflowing(), PROMPTS, tmp_path / "cache", shard_prompts=3, batch_size=2)
    assert build(tmp_path / "cache")


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (["a fox \ud83e"], r"the prompt 'a fox \\ud83e' cannot be used: the caption contains half of a character"),
        (["a\0b"], "cannot be used: the caption contains the control character"),
        ([], "there is no prompt: give at least one"),
    ],
    ids=range(3),
)
def test_prompts_that_no_file_can_hold_are_refused(prompts: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=sentence):
        build(tmp_path / "cache", prompts=prompts)
    assert not (tmp_path / "cache").exists()


def test_prompts_that_are_not_in_the_cache_are_reported_before_a_run(cache: Path) -> None:
    reader = PromptCache(cache)
    reader.check(Encoding(), PROMPTS)
    with pytest.raises(RMDError, match=r"^2 of 42 prompts are not in the cache .*, the first of them 'x': build a"):
        reader.check(Encoding(), [*PROMPTS, "x", "y"])


def test_a_home_folder_is_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(cache.parent))
    assert len(PromptCache(Path("~/cache"))) == len(PROMPTS)
    with pytest.raises(RMDError, match=r"^'~nobody-of-this-name/cache' is not a path: "):
        PromptCache(Path("~nobody-of-this-name/cache"))


def test_tokenizers_without_a_vocabulary_are_distinguished() -> None:
    class Processor:
        def __init__(self, step: int) -> None:
            self.tokenizer = lambda text: {"input_ids": [step * ord(c) for c in text]}

        def get_vocab(self) -> dict[bytes, int]:
            return {b"bytes": 1}

    def key(tokenizer: object) -> str:
        backbone: Any = SimpleNamespace(pipe=SimpleNamespace(components={"tokenizer": tokenizer}))
        return encoders_key(backbone)

    assert key(Processor(1)) == key(Processor(1)) != key(Processor(2))
    with pytest.raises(RMDError, match=r"^the teacher's tokenizer \(object\) gives neither a vocabulary nor"):
        key(object())
