"""Fills the tables and numbers of a comparison's results into a Markdown text.

Comments in the text mark their places, so the text remains readable without any processing:

    <!-- table main sdxl -->...<!-- end -->                   the table of a backbone
    <!-- main.sdxl.rmd.attributes -->52.6%<!-- end -->        a row's number
    <!-- main.sdxl.rmd.attributes.interval -->...<!-- end --> with its 95 % interval; or .low, .high, .p, .holm, .level
    <!-- main.sdxl.rmd.speedup -->1.50x<!-- end -->           measured speed over that of the slowest row
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rmd.common.errors import RMDError, one_of
from rmd.compare.run import Number, TableResult
from rmd.compare.write import adjusted, as_markdown, number_text
from rmd.evaluation.metrics import Metric, metric, part
from rmd.report.tables import fixed, p_text, percent, significant

_MARK = re.compile(r"(<!-- (?:table ([\w-]+) (\w+)|([\w-]+\.\w+\.\S+)) -->).*?(<!-- end -->)", re.DOTALL)
_FIELDS = ("mean", "interval", "low", "high", "difference", "p", "holm", "level")


def fill(text: str, results: Mapping[str, TableResult]) -> str:
    """Return the text with every marked table and number replaced by that of the results.

    Raises:
        RMDError: a mark names a table, row or number that the results lack.
    """

    def replaced(mark: re.Match[str]) -> str:
        head, name, backbone, path, end = mark.groups()
        if path is None:
            return f"{head}\n{as_markdown(_result(results, name), _backbone(results, name, backbone))}{end}"
        return f"{head}{_number(results, path)}{end}"

    return _MARK.sub(replaced, text)


def _number(results: Mapping[str, TableResult], path: str) -> str:
    name, backbone, rest = path.split(".", 2)
    result = _result(results, name)
    lines = result.backbones[_backbone(results, name, backbone)]
    # The names of rows may contain dots.
    row = max((line.name for line in lines if rest.startswith(f"{line.name}.")), key=len, default="")
    one_of(f"row of {name}", row or rest, tuple(line.name for line in lines))
    (line,) = (line for line in lines if line.name == row)
    measure, _, field = rest.removeprefix(f"{row}.").partition(".")
    if measure == "speedup":
        return f"{fixed(line.speedup, 2)}x"
    one_of("measure", measure, (*line.numbers, *line.parts))
    one_of("part of a number", field or "mean", _FIELDS)
    if field == "holm":
        p = adjusted(result).get((backbone, row, measure))
        if p is None:
            raise RMDError(f"{path}: these results have no such value")
        return p_text(p)
    kind, number = (metric, line.numbers) if measure in line.numbers else (part, line.parts)
    return _written(kind(measure), number[measure], field or "mean", path)


def _written(measure: Metric, number: Number, field: str, path: str) -> str:
    if field in ("mean", "interval"):
        return number_text(measure, number, interval=field == "interval")
    value: float | None = getattr(number, field)
    if value is None:
        raise RMDError(f"{path}: these results have no such value")
    if field in ("p", "level"):
        return p_text(value)
    return percent(value) if measure.shown == "percent" else significant(value)


def _result(results: Mapping[str, TableResult], name: str) -> TableResult:
    return results[one_of("table", name, tuple(results))]


def _backbone(results: Mapping[str, TableResult], name: str, backbone: str) -> str:
    return one_of(f"backbone of {name}", backbone, tuple(_result(results, name).backbones))
