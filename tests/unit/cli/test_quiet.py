"""Libraries that a command loads print nothing on standard error."""

from __future__ import annotations

from typing import Any

LOUD = """
{first}
from rmd.cli.quiet import quiet_libraries
quiet_libraries()
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging
for logging in (diffusers_logging, transformers_logging):
    logging.get_logger("diffusers.x" if logging is diffusers_logging else "transformers.x").error("loud")
"""


def test_what_they_log_as_errors_is_silent(run_python: Any) -> None:
    """Even of libraries that were imported before; for others, see the next test and those of the demo's output."""
    ended = run_python("-c", LOUD.format(first="import diffusers.utils.logging, transformers.utils.logging"))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_their_own_variables_are_obeyed(run_python: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "error")
    assert run_python("-c", LOUD.format(first="")).stderr.count("loud") == 1


def test_the_profiler_says_nothing(run_python: Any) -> None:
    script = (
        "from rmd.cli.quiet import quiet_libraries\nquiet_libraries()\nimport torch\n"
        "with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):\n    torch.ones(2).sum()\n"
    )
    ended = run_python("-c", script)
    assert (ended.returncode, ended.stderr) == (0, "")
