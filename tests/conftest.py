"""Settings that every test shares: one thread, no network, no display, the same examples on every run."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

# What tests share without fixtures lies in helpers.py, which importlib mode would not find.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
# Before torch or a Hugging Face library is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
from hypothesis import settings

# Imported modules are not garbage: collecting it meanwhile would take each process more than a second.
gc.disable()
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    # Tests write and delete thousands of small files, for which a disk would let the processor wait.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

settings.register_profile("rmd", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("rmd")

Run = Callable[..., "subprocess.CompletedProcess[str]"]
LONGEST = (
    "tests/distributed/", "tests/fuzz/", "tests/unit/test_accelerator.py", "tests/e2e/", "tests/unit/test_examples.py",
    "tests/unit/models/test_share.py", "tests/unit/models/test_adapter.py", "tests/unit/export/",
    "tests/unit/train/test_loop.py", "tests/unit/sample/test_pipeline.py", "tests/unit/cli/test_train.py",
    "tests/unit/compare/", "tests/unit/train/", "tests/research/", "tests/unit/evaluation/", "tests/learning/",
)  # fmt: skip
"""The longest tests come first: a processor that is given a long file at the end leaves the others without work."""
HEAVY = (
    "tests/browser/", "tests/distributed/", "tests/e2e/", "tests/fuzz/", "tests/learning/", "tests/load/",
    "tests/parity/", "tests/research/", "tests/storm/", "tests/unit/test_accelerator.py",
    "tests/unit/test_doc_commands.py", "tests/unit/test_examples.py",
    *(f"tests/unit/cli/test_{verb}.py" for verb in (
        "compare", "dry_run", "ending", "evaluate", "generate", "init", "probe", "quiet", "scenes", "serve", "suite",
        "train", "variant", "vbench",
    )),
    "tests/unit/bench/test_training.py", "tests/unit/compare/", "tests/unit/data/test_cache.py",
    "tests/unit/data/test_images.py", "tests/unit/evaluation/", "tests/unit/export/",
    "tests/unit/models/test_adapter.py", "tests/unit/models/test_share.py", "tests/unit/sample/test_pipeline.py",
    "tests/unit/scores/test_compbench_run.py", "tests/unit/scores/test_shares.py",
    "tests/unit/scores/test_upstream.py", "tests/unit/scores/test_vbench_run.py",
    "tests/unit/serve/test_engine.py", "tests/unit/serve/test_server.py",
    "tests/unit/study/test_server.py", "tests/unit/study/test_store.py", "tests/unit/train/",
    "tests/unit/ui/test_comparing.py", "tests/unit/ui/test_models.py", "tests/unit/ui/test_trying.py",
)  # fmt: skip
"""The files that `make check` leaves out, whose tests train, save and load whole pipelines, or start processes.

Their tests are marked `heavy`; in other files, tests that train are marked one by one.
"""
MOST_UPDATES = 2
"""Most updates of weights by a test that is not heavy."""
_updates: list[str] = []
"""The optimisers that made an update since the last test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the heavy tests, and put what takes longest first."""
    for item in items:
        if item.nodeid.startswith(HEAVY):
            item.add_marker("heavy")
    items.sort(key=lambda item: [item.nodeid.startswith(path) for path in LONGEST], reverse=True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Fail a test that trains although `make check` takes it for one that does not."""
    count, names = len(_updates), sorted(set(_updates))
    _updates.clear()
    if count > MOST_UPDATES and "heavy" not in item.keywords:
        pytest.fail(f"{count} updates by {names}: mark the test `heavy`, or add its file to HEAVY in conftest.py")


def pytest_collection_finish() -> None:
    """Exempt the objects of imported modules from garbage collection, which would take as long as some of the tests."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _denormal_numbers_stay() -> Iterator[None]:
    """A command flushes them for its whole process, which here is that of all tests.

    Of the session, and so before any fixture that runs a command: one of a module would come before one of a test.
    """
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_flush_denormal", lambda mode: True)
        yield


@pytest.fixture(scope="session", autouse=True)
def _updates_are_noted() -> Iterator[None]:
    from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

    def note(optimizer: Optimizer, *_: object) -> None:
        _updates.append(type(optimizer).__name__)

    handle = register_optimizer_step_pre_hook(note)
    yield
    handle.remove()


@pytest.fixture(scope="module")
def quick_muon() -> Iterator[None]:
    """One Newton-Schulz iteration of the five that torch's Muon makes by default.

    It makes them in bfloat16, which some processors only emulate: there they take most of a short training's time.
    """
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Muon", partial(torch.optim.Muon, ns_steps=1))
        yield


@pytest.fixture
def small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts in a run's panels, and two timed once: with the miniatures they take longer than what is tested."""
    monkeypatch.setattr("rmd.train.run.PANEL_PROMPTS", 2)
    monkeypatch.setattr("rmd.sample.timing.TIMED", 2)
    monkeypatch.setattr("rmd.sample.timing.REPEATS", 1)


@pytest.fixture(scope="session")
def run_python() -> Run:
    """Run this Python with the given arguments in a process of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="session")
def accelerate_launch() -> Run:
    """Run a script or `-m module` in two processes that `accelerate launch` starts, by torchrun at any free port."""
    told = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *told]

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=timeout)

    return run
