"""Fills the tables of the gates into the page on the worlds.

`python -m research.scenes gates --report docs/findings/gates/NAME.json` measures them. A comment in the text marks the
place of a table:

    <!-- gates vistas -->...<!-- end -->
"""

from __future__ import annotations

import re
from pathlib import Path

from research.scenes.gates import GateReport, gates_markdown
from rmd.common.errors import one_of
from rmd.common.files import read_model

_MARK = re.compile(r"(<!-- gates ([\w-]+) -->).*?(<!-- end -->)", re.DOTALL)


def read_gates(folder: Path) -> dict[str, GateReport]:
    """Return the stored gates by the name of their world.

    Raises:
        RMDError: a file holds anything else.
    """
    reports = [read_model(path, GateReport) for path in sorted(folder.glob("*.json"))]
    return {report.world: report for report in reports}


def fill_gates(text: str, reports: dict[str, GateReport]) -> str:
    """Return the text with the table of every marked world.

    Raises:
        RMDError: a mark names a world without a report.
    """

    def replaced(mark: re.Match[str]) -> str:
        head, name, end = mark.groups()
        report = reports[one_of("world with gates", name, tuple(reports))]
        how = (
            f"{report.samples} captions; the teacher sampled in {report.steps} steps with a guidance of "
            f"{report.guidance:g}."
        )
        return f"{head}\n\n{gates_markdown(report.gates)}\n{how}\n{end}"

    return _MARK.sub(replaced, text)
