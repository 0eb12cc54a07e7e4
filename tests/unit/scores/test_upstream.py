"""Processes of other programs: logs, failures in one sentence, limits of time, and an end with all that they start."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.common.files import locked
from rmd.data.prompt_set import PromptSet
from rmd.scores.upstream import RECORD, Calls, Record, check_record, interpreter, keep, run_parts

RECORDED = Record(benchmark="vbench", prompts=PromptSet.of(["a"], "mine"), plan="p", videos={"color": "c"})


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gone(pid: int) -> bool:
    """Return whether a process ends soon; a zombie whose parent is gone counts as ended."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_what_a_program_writes_is_in_its_log(tmp_path: Path) -> None:
    calls = Calls(tmp_path / "out")
    code = "import os, sys; print('one'); print('two', file=sys.stderr); print(os.getcwd(), os.environ['MASTER_PORT'])"
    calls("part", python(code), cwd=tmp_path)
    one, two, third = calls.log("part").read_text(encoding="utf-8").splitlines()
    assert (one, two) == ("one", "two") and third.split()[0] == str(tmp_path) and int(third.split()[1]) > 0


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            "print('x'); raise ValueError('no GPU')",
            r"^part failed with status 1 \(log: .*part\.log\): ValueError: no GP",
        ),
        ("raise SystemExit(3)", r"^part failed with status 3 \(log: .*part\.log\): it wrote nothing$"),
        (
            r"print('a\r10%\r\x1b[31mbad \x07news\x1b[0m\n\n', end=''); raise SystemExit(1)",
            r"status 1 \(log: .*\): bad  news$",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            r"^part was killed by signal 9, as happens when the memory is full \(log: .*\): it wrote nothing$",
        ),
    ],
)
def test_a_failure_is_one_sentence(code: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=sentence) as caught:
        Calls(tmp_path)("part", python(code))
    assert "\n" not in str(caught.value)


def test_a_program_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        RMDError, match=r"^part cannot be started: No such file or directory \(log: .*\): it wrote noth"
    ):
        Calls(tmp_path)("part", [str(tmp_path / "nothing")])
    with pytest.raises(RMDError, match=r"nothing is not a program: give --python the interpreter of the benchmark's "):
        interpreter(tmp_path / "nothing")
    (tmp_path / "text").touch()
    with pytest.raises(RMDError, match=r"text is not a program"):
        interpreter(tmp_path / "text")
    (tmp_path / "link").symlink_to(sys.executable)
    assert interpreter(tmp_path / "link") == str(tmp_path / "link")


CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({path!r}, "w").write(str(child.pid))
time.sleep(60)
"""


def test_a_program_that_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    calls = Calls(tmp_path, timeout=3)
    with pytest.raises(RMDError, match=r"^part took longer than 3 seconds and was ended \(log: "):
        calls("part", python(CHILD.format(path=str(path))))
    assert gone(int(path.read_text(encoding="utf-8")))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt this process, which ignores it if it was started in the background."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interruption_ends_the_program(number: int, error: type[BaseException], tmp_path: Path) -> None:
    path, handler = tmp_path / "pid", signal.getsignal(signal.SIGTERM)

    def interrupt() -> None:
        while not (path.exists() and path.read_text(encoding="utf-8")):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(error):
        Calls(tmp_path)("part", python(CHILD.format(path=str(path))))
    thread.join()
    assert gone(int(path.read_text(encoding="utf-8"))) and signal.getsignal(signal.SIGTERM) == handler


def test_parts_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    calls, done, seen = Calls(tmp_path), [], []

    def part(name: str, *, fails: bool = False) -> None:
        (calls.work(name) / "large file").touch()
        if fails:
            raise RMDError("failed")
        (tmp_path / name).touch()
        done.append(name)

    parts = {"a": lambda: part("a"), "b": lambda: part("b", fails=True), "c": lambda: part("c")}
    with pytest.raises(RMDError, match=r"^failed$"):
        run_parts(parts, lambda name: (tmp_path / name).exists(), calls, RECORDED)
    assert done == ["a"] and not (tmp_path / "work").exists()
    parts["b"] = lambda: part("b")
    run_parts(
        parts, lambda name: (tmp_path / name).exists(), calls, RECORDED, lambda *each: seen.append(each)
    )  # fmt: skip
    assert done == ["a", "b", "c"] and seen == [("evaluating", number, 3) for number in (1, 2, 3)]
    with locked(tmp_path), pytest.raises(RMDError, match=r"^another process is writing to "):
        run_parts(parts, lambda name: True, calls, RECORDED)


def test_a_folder_has_results_of_one_plan_and_its_videos(tmp_path: Path) -> None:
    check_record(RECORDED, tmp_path)
    check_record(RECORDED.model_copy(update={"videos": {"scene": "s"}}), tmp_path)
    assert '"color": "c"' in (tmp_path / RECORD).read_text(encoding="utf-8")
    with pytest.raises(RMDError, match=r" has results of other videos of scene: choose another --out, or remove it$"):
        check_record(RECORDED.model_copy(update={"videos": {"scene": "t", "color": "c"}}), tmp_path)
    with pytest.raises(RMDError, match=r" has results of another plan: choose another --out, or remove it$"):
        check_record(RECORDED.model_copy(update={"plan": "q"}), tmp_path)
    (tmp_path / RECORD).write_text("{}", encoding="utf-8")
    with pytest.raises(RMDError, match=r"run\.json: benchmark is missing"):
        check_record(RECORDED, tmp_path)


def test_results_are_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new", encoding="utf-8")
    (tmp_path / "b").write_text("old", encoding="utf-8")
    keep(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text(encoding="utf-8") == "new"
    with pytest.raises(RMDError, match=r"^there is no file "):
        keep(tmp_path / "c", tmp_path / "b")
    with pytest.raises(RMDError, match=r"^cannot write to "):
        keep(tmp_path / "a", tmp_path / "a" / "b")
