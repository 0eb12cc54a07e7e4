"""Runs damaged inputs through the command line, in one process, and judges how each run ended.

A case is a line such as `plan/recipe/alias-bomb/123`: verb, kind of input, damage, and the seed of its random choices.
The same line is the same case on every machine.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

import torch
from fuzz.targets import TARGETS, Target, Words, draw
from processes import SERVER

from rmd.cli.app import main

CPU_SECONDS, WALL_SECONDS = 10.0, 60.0
"""Time limits beyond which a case counts as hung; the first is not affected by other processes on the machine."""
MEMORY = 4 * 2**30
"""Largest address space of a case in bytes, so that a greedy case fails without taking the machine down."""
GOOD = ("refused", "accepted", "usage error")
OUTCOMES = (
    *GOOD, "silent success", "unexpected", "traceback", "several lines", "no line", "half-written",
    "valid refused", "hang",
    "crash",
)  # fmt: skip
NONE = "none"
"""Name of the damage of a valid input."""
_PROGRESS = re.compile(r"rmd: warning: |.+: \d+/\d+, |\s*$|training |vae|rendering|teacher|judge")


@dataclass(frozen=True)
class Result:
    """Outcome of a case, one of `OUTCOMES`, with a description of the case and its output."""

    case: str
    outcome: str
    arguments: list[str]
    said: str


class Hang(BaseException):
    """Raised when a case has used up its time."""


def cases(count: int, seed: int, only: str = "") -> list[str]:
    """Return the cases of a seed; `only` selects those whose verb and kind of input contain it."""
    wanted = [target for target in TARGETS if only in f"{target.verb}/{target.what}"]
    drawn = []
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")
        target = draw(rng, wanted)
        if isinstance(target, Target):
            damage = rng.choice(sorted(target.mutations))
        else:
            damage = rng.choice(("fatal", "open") if target.open else ("fatal",))
        drawn.append(f"{target.verb}/{target.what}/{damage}/{rng.randrange(10**9)}")
    return drawn


def undamaged() -> list[str]:
    """Return cases with valid input that are accepted quickly; without them, a command could refuse everything."""
    valid = []
    for target in TARGETS:
        if isinstance(target, Target) and not all(mutation.fatal for mutation in target.mutations.values()):
            valid.append(f"{target.verb}/{target.what}/{NONE}/0")
    return valid


def run_case(case: str, world: Path, folder: Path) -> Result:
    """Make a case's input in an empty folder, run its command there, and judge how it ended."""
    verb, rest = case.split("/", 1)
    what, damage, number = rest.rsplit("/", 2)
    (target,) = (t for t in TARGETS if (t.verb, t.what) == (verb, what))
    rng = random.Random(number)
    if isinstance(target, Target):
        arguments, fatal = _damaged_file(target, damage, rng, world, folder)
    else:
        arguments, fatal = _any_words(target, damage, rng), damage == "fatal"
    arguments = [a.replace("{case}", str(folder)).replace("{world}", str(world)) for a in arguments]
    before = _contents(folder)
    status, err = _run(arguments, folder)
    outcome = _judge(status, err, fatal=fatal)
    if outcome in ("refused", "usage error") and _left_behind(before, _contents(folder), keeps=target.keeps):
        outcome = "half-written"
    if damage == NONE and outcome in ("refused", "usage error"):
        outcome = "valid refused"
    said = err if status is not None else f"{err}(nothing within {CPU_SECONDS:g} s)"
    shown = [argument if len(argument) < 300 else f"{argument[:200]}... ({len(argument)})" for argument in arguments]
    return Result(case, outcome, shown, said[-2000:])


def run_cases(wanted: Sequence[str], world: Path) -> Iterator[Result]:
    """Yield results of cases, computed in a separate process, which is restarted if a case kills it."""
    done = 0
    while done < len(wanted):
        last = done
        for result in _in_child(wanted[done:], world):
            done += 1
            yield result
        if done < len(wanted) and done >= last:
            yield Result(wanted[done], "crash", [], "the process died")
            done += 1


def _in_child(wanted: Sequence[str], world: Path) -> Iterator[Result]:
    """Yield results of the cases until they, or the process, end."""
    reading, writing = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_work, args=(list(wanted), world, writing))
    process.start()
    writing.close()  # so that reading ends when the process ends
    with reading, contextlib.suppress(EOFError):
        while True:
            yield reading.recv()
    process.join()


def _work(wanted: Sequence[str], world: Path, results: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = MEMORY + pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for case in wanted:
        with tempfile.TemporaryDirectory(prefix="rmd-fuzz-", ignore_cleanup_errors=True) as folder:
            result = run_case(case, world, Path(folder))
        results.send(result)


def _damaged_file(target: Target, damage: str, rng: random.Random, world: Path, folder: Path) -> tuple[list[str], bool]:
    for part in target.parts:
        shutil.copytree(world / part, folder / part)
    files = sorted(path for path in folder.glob(target.files) if path.is_file())
    if damage == NONE:
        return list(target.arguments), False
    file, mutation = rng.choice(files), target.mutations[damage]
    # A change that does not apply to the file, such as to a key that it does not have, leaves it valid.
    with contextlib.suppress(ValueError, IndexError, AttributeError, TypeError, KeyError):
        mutation.change(file, rng)
        return list(target.arguments), mutation.fatal
    return list(target.arguments), False


def _any_words(words: Words, damage: str, rng: random.Random) -> list[str]:
    table = words.fatal if damage == "fatal" else words.open
    option = rng.choice(sorted(table))
    value = rng.choice(table[option])
    if option.startswith("--set "):
        return [*words.arguments, "--set", f"{option.removeprefix('--set ')}={value}"]
    if option.endswith("!"):
        return [*words.arguments, *option[:-1].split()]
    return [*words.arguments, *option.split(), value]


def _run(arguments: list[str], folder: Path) -> tuple[int | None, str]:
    """Return the exit status (None if it hung) and the error output, including any exception that leaves `main`."""
    torch.set_num_threads(1)
    before = Path.cwd()
    said: list[str] = []
    with _captured(said):
        os.chdir(folder)
        try:
            with _limited():
                status: int | None = main(arguments)
        except Hang:
            status = None
        except BaseException as error:  # a traceback, with which no command may end
            print(f"Traceback: {type(error).__name__}: {error!s:.500}", file=sys.stderr)
            status = 1
        finally:
            os.chdir(before)
    return status, said[1]


@contextlib.contextmanager
def _captured(said: list[str]) -> Iterator[None]:
    """Append to `said` what Python's streams and, past them, libraries write to both standard outputs."""
    streams, kept = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
    with tempfile.TemporaryDirectory(prefix="rmd-said-") as folder:
        paths = Path(folder, "out"), Path(folder, "err")
        for stream in streams:
            stream.flush()
        for number, path in enumerate(paths, start=1):
            with path.open("wb") as file:
                os.dup2(file.fileno(), number)
        # Opened as Python does: a character that cannot be encoded is an error on standard output only.
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, UnicodeError):
                    stream.flush()
            sys.stdout, sys.stderr = streams
            for number, handle in enumerate(kept, start=1):
                os.dup2(handle, number)
                os.close(handle)
            said += [path.read_text("utf-8", "replace") for path in paths]


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, CPU_SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WALL_SECONDS)}
    for number, (timer, seconds) in timers.items():
        signal.signal(number, stop)
        signal.setitimer(timer, seconds, 1.0)  # repeated, in case something swallows the first
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, signal.SIG_IGN)


def _judge(status: int | None, err: str, *, fatal: bool) -> str:
    lines = [line for line in err.split("\n") if line]
    sentences = [line for line in lines if line.startswith("rmd: ") and not line.startswith("rmd: warning: ")]
    if status is None:
        return "hang"
    if "Traceback" in err or "Exception ignored" in err:
        return "traceback"
    if any(line.startswith("rmd: unexpected") for line in lines):
        return "unexpected"
    if status == 0:
        return "silent success" if fatal else "accepted"
    if status == 2 and not sentences:
        return "usage error" if lines else "no line"
    if not sentences:
        return "no line"
    rest = [line for line in lines if line not in sentences and not _PROGRESS.match(line)]
    if len(sentences) > 1 or rest or lines[-1] not in sentences:
        return "several lines"
    return "refused"


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder; folders alone do not count."""
    contents = {}
    for path in folder.rglob("*"):
        if not path.is_dir() or path.is_symlink():
            about = path.lstat()
            contents[str(path.relative_to(folder))] = about.st_size, about.st_mtime_ns
    return contents


def _left_behind(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], *, keeps: bool) -> list[str]:
    """Return files that a failed command should not have left behind or changed."""
    before, after = (
        {name: about for name, about in contents.items() if not name.endswith(".lock")} for contents in (before, after)
    )
    new = [name for name in after if name not in before and re.search(r"partial|previous|\.tmp|writable", name)]
    return new if not keeps else [*new, *(name for name in {*before, *after} if before.get(name) != after.get(name))]
