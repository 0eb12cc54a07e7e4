"""A Markdown text whose tables and numbers are those of a comparison's results.

The text marks where they stand, and reads as itself without being processed:

    <!-- table main sdxl -->...<!-- end -->                   the table of a backbone
    <!-- main.sdxl.rmd.attributes -->52.6%<!-- end -->        a row's number
    <!-- main.sdxl.rmd.attributes.interval -->...<!-- end --> with its 95 % interval; or .low, .high, .difference, .p
    <!-- main.sdxl.rmd.speedup -->1.50x<!-- end -->           measured seconds over those of the slowest row
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rmd.common.errors import RMDError, one_of
from rmd.compare.run import Line, Number, TableResult
from rmd.compare.write import as_markdown, number_text, p_text
from rmd.evaluate.statistics import MEASURES, Measure, part
from rmd.report.tables import fixed, percent, significant

_MARK = re.compile(r"(<!-- (?:table (\w+) (\w+)|(\w+\.\w+\.\S+)) -->).*?(<!-- end -->)", re.DOTALL)
_FIELDS = ("mean", "interval", "low", "high", "difference", "p")


def fill(text: str, results: Mapping[str, TableResult]) -> str:
    """The text with what its marks enclose as the results have it; RMDError for a mark that names nothing."""

    def replaced(found: re.Match[str]) -> str:
        head, name, backbone, path, end = found.groups()
        if path is None:
            return f"{head}\n{as_markdown(_result(results, name), _backbone(results, name, backbone))}{end}"
        return f"{head}{_number(results, path)}{end}"

    return _MARK.sub(replaced, text)


def _number(results: Mapping[str, TableResult], path: str) -> str:
    name, backbone, rest = path.split(".", 2)
    result = _result(results, name)
    lines = result.backbones[_backbone(results, name, backbone)]
    # names of rows may hold a point themselves
    row = max((line.name for line in lines if rest.startswith(f"{line.name}.")), key=len, default="")
    one_of(f"row of {name}", row or rest, tuple(line.name for line in lines))
    (line,) = (line for line in lines if line.name == row)
    measure, _, field = rest.removeprefix(f"{row}.").partition(".")
    if measure == "speedup":
        return f"{fixed(line.speedup, 2)}x"
    one_of("measure", measure, (*line.numbers, *line.parts))
    one_of("part of a number", field or "mean", _FIELDS)
    return _written(_measure(measure), _number_of(line, measure), field or "mean", path)


def _written(measure: Measure, number: Number, field: str, path: str) -> str:
    if field in ("mean", "interval"):
        return number_text(measure, number, interval=field == "interval", star=False)
    value: float | None = getattr(number, field)
    if value is None:
        raise RMDError(f"{path}: these results have none")
    if field == "p":
        return p_text(value)
    return percent(value) if measure.share else significant(value)


def _measure(name: str) -> Measure:
    return next((measure for measure in MEASURES if measure.name == name), part(name))


def _number_of(line: Line, measure: str) -> Number:
    return line.numbers[measure] if measure in line.numbers else line.parts[measure]


def _result(results: Mapping[str, TableResult], name: str) -> TableResult:
    return results[one_of("table", name, tuple(results))]


def _backbone(results: Mapping[str, TableResult], name: str, backbone: str) -> str:
    return one_of(f"backbone of {name}", backbone, tuple(_result(results, name).backbones))
