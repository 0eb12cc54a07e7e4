"""Tables of scores for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from rmd.report.tables import fixed, percent, significant
from rmd.scores.calibrate import Calibration
from rmd.scores.compbench import CompbenchScores
from rmd.scores.distances import DISTANCES, SetDistance
from rmd.scores.metrics import METRICS
from rmd.scores.result import Difference, Result, Score
from rmd.scores.vbench import Totals
from rmd.scores.video import VIDEO_METRICS


def scores_text(result: Result) -> Table:
    """Return the scores of one result as a table."""
    protocol = result.protocol
    prompts = f"{protocol.prompts.count} prompts ({protocol.prompts.name})"
    table = _table(
        f"{result.making.model}, {prompts}, {protocol.width} x {protocol.height} {protocol.image_format.upper()}",
        ("mean", "95 % interval", _noun(result), "missing"),
    )
    for name, score in result.scores.items():
        table.add_row(Text(title_of(name)), *_cells(name, score))
        grouped = result.groups.get(name)
        if grouped is not None:
            for group, each in grouped.groups.items():
                table.add_row(Text(f"  {group}"), *_cells(name, each))
            table.add_row(Text(f"  average of {len(grouped.groups)}"), *_cells(name, grouped.average))
    table.caption = Text("Intervals: a bootstrap over prompts.")
    return table


def differences_text(ours: Result, theirs: Result, found: Mapping[str, Difference]) -> Table:
    """Return the comparison of two results as a table."""
    models = ours.making.model, theirs.making.model
    table = _table(f"{models[0]} and {models[1]}", (*models, "difference", "95 % interval", "ahead", "missing"))
    for name, each in found.items():
        values = (each.ours, each.theirs, each.difference, each.low, each.high)
        first, second, gap, low, high = (_number(name, value) for value in values)
        table.add_row(
            Text(title_of(name)), first, second, gap, f"{low} to {high}", percent(each.ahead), str(each.missing)
        )  # fmt: skip
    table.caption = Text(
        "Differences of the same prompts and seeds, with intervals by a bootstrap over prompts. Ahead: share of the "
        f"prompts for which the first model's {_noun(ours)} score higher."
    )
    return table


def calibration_text(found: Calibration) -> Table:
    """Return a calibration as a table."""
    table = _table(f"HPDv2's pictures of {found.title}", ("ours", "published", "difference", "pictures", "missing"))
    for name, lines in found.metrics.items():
        table.add_row(Text(title_of(name)))
        for group, line in lines.items():
            cells = fixed(line.ours.mean, 2), fixed(line.published, 2), f"{line.difference:+.2f}"
            table.add_row(Text(f"  {group}"), *cells, str(line.ours.count), str(line.ours.missing))
    table.caption = Text(f"Published: {found.source}.")
    return table


def distances_text(title: str, found: Mapping[str, SetDistance]) -> Table:
    """Return distances of two sets of pictures as a table."""
    table = _table(title, ("distance", "95 % interval", "pictures", "reference"))
    for name, each in found.items():
        known = each.low is not None and each.high is not None
        interval = f"{significant(each.low or 0.0)} to {significant(each.high or 0.0)}" if known else "-"
        title = DISTANCES[name].title if name in DISTANCES else name
        table.add_row(Text(title), significant(each.value), interval, str(each.count), str(each.reference))
    table.caption = Text("Compare distances of equally many pictures only: most of them depend on the number.")
    return table


def vbench_text(scores: Mapping[str, float], result: Totals) -> Table:
    """Return VBench's scores as a table: raw, normalised, and the totals, all times 100."""
    table = _table("VBench", ("raw", "normalised"))
    for name, value in result.dimensions.items():
        table.add_row(Text(name.replace("_", " ")), fixed(100 * scores[name], 2), fixed(100 * value, 2))
    for name, value in (("quality", result.quality), ("semantic", result.semantic), ("total", result.total)):
        table.add_row(Text(name), "", fixed(100 * value, 2), style="bold")
    return table


def compbench_text(result: CompbenchScores) -> Table:
    """Return T2V-CompBench's scores as a table."""
    table = _table(f"T2V-CompBench, version {result.edition}", ("score", "videos", "unread"))
    for name, each in result.categories.items():
        table.add_row(Text(name.replace("_", " ")), fixed(each.mean, 4), str(each.count), str(each.unread))
    table.add_row(Text("average"), fixed(result.average, 4), "", "", style="bold")
    table.caption = Text("Unread: videos without a score, since a network's reply could not be read.")
    return table


def _table(title: str, heads: tuple[str, ...]) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("")
    for head in heads:
        table.add_column(Text(head), justify="right")
    return table


def _noun(result: Result) -> str:
    """Return what was scored."""
    return "pictures" if result.protocol.frames is None else "clips"


def _cells(name: str, score: Score) -> tuple[str, str, str, str]:
    """Return mean, interval, number of samples, and number of missing ones."""
    mean, low, high = (_number(name, value) for value in (score.mean, score.low, score.high))
    return mean, f"{low} to {high}", str(score.count), str(score.missing)


def title_of(name: str) -> str:
    """Return the title of a metric, which may be one that is not installed."""
    metric = METRICS.get(name) or VIDEO_METRICS.get(name)
    return metric.title if metric else name


def digits_of(name: str) -> int:
    """Return the number of decimals of a metric."""
    metric = METRICS.get(name) or VIDEO_METRICS.get(name)
    return metric.digits if metric else 3


def _number(name: str, value: float) -> str:
    return fixed(value, digits_of(name))
