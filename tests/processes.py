"""Processes forked from one that has imported everything already, which takes longer than a tiny run does."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

WORLD, TIMEOUT = 2, 300
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["rmd.cli.app", "rmd.cli.train", "rmd.train.loop", "rmd.sample.pipeline", "rmd.serve.server"]
)


def _run(arguments: tuple[str, ...], out: Path, variables: dict[str, str]) -> None:
    """The code that the process runs: the script, or the module after `-m`."""
    for number, end in ((1, "out"), (2, "err")):
        with out.with_suffix(f".{end}").open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    faulthandler.enable()  # a crash of native code says where every thread was
    os.environ.update(variables)
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def start(*arguments: str, out: Path, **variables: str) -> BaseProcess:
    """Start a script or `-m module`; what it writes goes to the files `out` with the ends .out and .err."""
    process = SERVER.Process(target=_run, args=(arguments, out, variables))
    process.start()
    return process


@contextmanager
def serving(*arguments: str, out: Path, **variables: str) -> Iterator[tuple[str, BaseProcess]]:
    """Start a server as `start` does; yield the address that it prints and the process, which is ended at last."""
    process = start(*arguments, out=out, **variables)
    said, told = out.with_suffix(".out"), out.with_suffix(".err")
    try:
        for _ in range(20 * TIMEOUT):
            text = said.read_text(encoding="utf-8") if said.exists() else ""
            if found := re.search(r"http://\S+(?=\s)", text):
                break
            assert process.is_alive(), told.read_text(encoding="utf-8")
            time.sleep(0.05)
        yield found[0] if found else "", process
    finally:
        process.kill()
        process.join()


def run_ranks(*arguments: str) -> CompletedProcess[str]:
    """Run a script or `-m module` in two processes, with the variables that torchrun sets.

    All of them must end by themselves: torchrun ends the others once one has failed.

    Returns:
        the first exit code that is not 0, and what all of them wrote.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "MASTER_PORT": free.getsockname()[1]}
    with tempfile.TemporaryDirectory() as name:
        outs = [Path(name, f"rank{rank}") for rank in range(WORLD)]
        started = []
        for rank, out in enumerate(outs):
            places = {key: str(value) for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            started.append(start(*arguments, out=out, MASTER_ADDR="127.0.0.1", **places))
        for process in started:
            process.join(TIMEOUT)
        stuck = [rank for rank, process in enumerate(started) if process.is_alive()]
        for process in started:
            process.kill()
            process.join()
        said, told = (
            "".join(out.with_suffix(f".{end}").read_text(encoding="utf-8") for out in outs) for end in ("out", "err")
        )
    assert not stuck, f"processes {stuck} did not end within {TIMEOUT} s: {told}"
    return CompletedProcess(arguments, next((p.exitcode for p in started if p.exitcode), 0), said, told)
