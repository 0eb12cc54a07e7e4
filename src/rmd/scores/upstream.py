"""Runs a benchmark's own programs in an environment of their own, part by part, and keeps what they find.

Every call is a process with a log. It ends with all that it started when its time is up, when this process is told to
end, or when anything goes wrong. A part that is finished has its result files, which appear only when they are complete
and make sense, so the same command continues where an earlier one stopped.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from types import FrameType

from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, locked, read_errors, read_model, reason, replacing, write_text
from rmd.common.typed import Strict
from rmd.data.prompt_set import PromptSet
from rmd.sample.progress import Progress

RECORD = "run.json"
LOGS, WORK = "logs", "work"
"""Folders below that of the results: of the programs' output, and of files that are removed at the end."""
GRACE = 10.0
"""Seconds that a process has to end before it is killed."""
_TAIL = 65536
"""Number of bytes at the end of a log in which its last line is looked for."""


class Record(Strict):
    """The plan and the videos to which a folder of results belongs; it takes no results of any others."""

    version: int = 1
    benchmark: str
    prompts: PromptSet
    plan: str
    """SHA-256 of the file of the plan."""
    videos: dict[str, str]
    """SHA-256 of the contents of the videos of every folder that was evaluated."""


@dataclass(frozen=True)
class Calls:
    """The calls of one evaluation.

    Attributes:
        out: folder of the results.
        timeout: seconds after which a process is ended; None: it may take as long as it wants.
    """

    out: Path
    timeout: float | None = None

    def __call__(self, name: str, command: Sequence[str], *, cwd: Path | None = None) -> None:
        """Run a program to its end.

        Args:
            name: what messages and the log are called.
            command: the program and its arguments.
            cwd: the folder in which it runs; None: this process's own.

        Raises:
            RMDError: it cannot be started, fails, is killed, or takes too long.
        """
        log = self.log(name)
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                problem = _problem(command, output.fileno(), cwd, self.timeout)
        if problem:
            raise RMDError(f"{name} {problem} (log: {log}): {_last_line(log)}")

    def log(self, name: str) -> Path:
        """Return the file of a call's output."""
        return self.out / LOGS / f"{name}.log"

    def work(self, name: str) -> Path:
        """Return a new, empty folder for files that are not kept.

        Its name is new as well: a program may have outlived a process that was killed, and still write to the old one.
        """
        folder = self.out / WORK
        with disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            return Path(mkdtemp(prefix=f"{name}-", dir=folder)).resolve()


def run_parts(
    parts: Mapping[str, Callable[[], None]], done: Callable[[str], bool], calls: Calls, record: Record,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Carry out the parts of an evaluation that are not done yet, while no other process writes to its folder.

    Args:
        parts: what carries out each part, by its name.
        done: returns whether a part has its results.
        calls: the calls of the evaluation, whose files that are not kept are removed after every part.
        record: what the results are of.
        progress: receives the number of parts that are done, and of all.

    Raises:
        RMDError: a part fails, and the results of those before it remain; or the folder has results of other videos.
    """
    with locked(calls.out):
        check_record(record, calls.out)
        left = [name for name in parts if not done(name)]
        for number, name in enumerate(left, start=len(parts) - len(left)):
            if progress is not None:
                progress("evaluating", number, len(parts))
            try:
                parts[name]()
            finally:
                shutil.rmtree(calls.out / WORK, ignore_errors=True)
    if progress is not None:
        progress("evaluating", len(parts), len(parts))


def check_record(record: Record, out: Path) -> None:
    """Write what the results in a folder are of, or check that those which are there are of the same.

    Raises:
        RMDError: the folder has results of other videos or of another plan, or cannot be written to.
    """
    path, videos = out / RECORD, dict(record.videos)
    if path.is_file():
        known = read_model(path, Record)
        for name in ("benchmark", "prompts", "plan"):
            if getattr(known, name) != getattr(record, name):
                raise RMDError(f"{out} has results of another plan: choose another --out, or remove it")
        for folder, digest in known.videos.items():
            if videos.setdefault(folder, digest) != digest:
                raise RMDError(f"{out} has results of other videos of {folder}: choose another --out, or remove it")
    with disk_errors(path):
        write_text(path, record.model_copy(update={"videos": videos}).model_dump_json(indent=1) + "\n")


def keep(source: Path, target: Path) -> None:
    """Copy a result file to its place atomically.

    Raises:
        RMDError: it does not exist, or cannot be written.
    """
    with read_errors(source):
        content = source.read_bytes()
    with disk_errors(target), replacing(target) as partial:
        partial.write_bytes(content)


def interpreter(python: Path) -> str:
    """Return the absolute path of an interpreter; links are kept, since they tell an environment.

    Raises:
        RMDError: there is no such program.
    """
    path = Path(os.path.abspath(python.expanduser()))
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise RMDError(f"{python} is not a program: give --python the interpreter of the benchmark's own environment")
    return str(path)


def _problem(command: Sequence[str], output: int, cwd: Path | None, timeout: float | None) -> str:
    """Run a program, and return what went wrong; "" if nothing did."""
    # A port of its own: programs that prepare for several GPUs would else all use the same one.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "MASTER_PORT": str(_free_port())}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=environment,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"cannot be started: {reason(error)}"
    with _ended_at_last(process):
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"took longer than {timeout:g} seconds and was ended"
    if status < 0:
        return f"was killed by signal {-status}, as happens when the memory is full"
    return f"failed with status {status}" if status else ""


@contextmanager
def _ended_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process and all that it started, however the block is left; SIGTERM leaves it, too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()  # Python delivers signals to no other one
    previous = signal.signal(signal.SIGTERM, leave) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        if process.returncode != 0:
            _signal(process, signal.SIGKILL)  # what it started may go on without it
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, for a message."""
    with read_errors(log), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = file.read().decode("utf-8", "replace")
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    return "".join(c if c.isprintable() else " " for c in lines[-1][:300]) if lines else "it wrote nothing"
