"""Commands on a full or read-only disk: one sentence, no partial files, and the same result once there is room."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storm_jobs import VERBS, job_of, leftovers, make_home

pytestmark = pytest.mark.slow
Remount = Callable[[str], None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("disk"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Remount]]:
    """Yield a small file system, and a function that changes its mount options: `size=200k`, `ro`, `rw`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield folder, remount
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def refused(verb: str, home: Path, out: Path) -> str:
    """Run a command that must fail; return its one sentence, without the folder's name."""
    process = job_of(verb, home).run(out, home / "log")
    process.join(120)
    said = (home / "log.err").read_text(encoding="utf-8")
    assert process.exitcode == 1, said
    # Output of libraries is not checked: here they were imported before a command could silence them.
    (sentence,) = (line for line in said.splitlines() if line.startswith("rmd: ") and "warning" not in line)
    assert "Traceback" not in said and "please report it" not in sentence, said
    return sentence.replace(str(out.parent), "")


def prepared(verb: str, home: Path) -> tuple[int, object]:
    """Return how many bytes a command writes undisturbed, and the digest of its result."""
    if verb == "export-checkpoint" and not (home / "run").exists():
        job_of("train", home).finish(home / "run", home / "run.log")
    out, job = home / f"{verb}-whole", job_of(verb, home)
    if not out.exists():
        job.finish(out, home / "log")
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file()), job.digest(out)


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_sentence_and_loses_nothing(verb: str, home: Path, disk: tuple[Path, Remount]) -> None:
    folder, remount = disk
    size, expected = prepared(verb, home)
    out, job = folder / "out", job_of(verb, home)
    for share in (0.1, 0.5, 0.8):
        remount(_size(share * size))
        sentence = refused(verb, home, out)
        assert "full" in sentence or "space" in sentence, sentence
        assert not leftovers(folder), sentence
    remount("size=1g")
    job.finish(out, home / "log")
    assert job.digest(out) == expected


@pytest.mark.parametrize("verb", VERBS)
def test_a_read_only_disk_is_one_sentence_and_loses_nothing(verb: str, home: Path, disk: tuple[Path, Remount]) -> None:
    folder, remount = disk
    _, expected = prepared(verb, home)
    out, job = folder / "out", job_of(verb, home)
    remount("ro")
    sentence = refused(verb, home, out)
    assert "ead-only" in sentence or "you may not write there" in sentence, sentence
    remount("rw")
    job.finish(out, home / "log")
    assert job.digest(out) == expected
    if verb == "train":
        shutil.rmtree(out / "student")
    remount("ro")
    process = job.run(out, home / "log")  # a finished command writes nothing, or reports that it cannot
    process.join(120)
    said = (home / "log.err").read_text(encoding="utf-8")
    assert process.exitcode == 0 or "ead-only" in said or "you may not write there" in said, said
    assert "Traceback" not in said and "please report it" not in said


def _size(count: float) -> str:
    """Return the mount option for a file system of a number of bytes, in whole pages."""
    return f"size={max(1, round(count / 4096)) * 4}k"
