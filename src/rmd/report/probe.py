"""Shows the result of `rmd probe`: a summary for terminals, and a self-contained page with pictures and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from rmd.common.files import disk_errors, new_folder, write_text
from rmd.common.pictures import png, to_image, webp
from rmd.evaluation.metrics import metric, metrics_in
from rmd.evaluation.probe import Probe, ProbeResult, Reading, Ring, StageProbe
from rmd.evaluation.trust import FEW_BITS, undecided
from rmd.report.curves import DARK, LIGHT, Theme, use_theme
from rmd.report.gallery import CLIP_FPS
from rmd.report.html import Cell, HtmlTable, TableRow, cells, image_data, render
from rmd.report.plotting import drawing, svg
from rmd.report.tables import bounds, fixed, percent, significant, writer
from rmd.worlds.base import Measured

TRUSTED = {
    "own": "can be trusted",
    "mixed": "can be trusted in part",
    "teacher": "cannot be trusted: its structure is wrong",
}
MENDED = "is wrong by itself, but the steps after the crossing mend it"
WHY = {
    "own": "match every step at its own resolution, where nothing is blurred and training is cheapest.",
    "mixed": "match low-resolution steps at either resolution: their own keeps detail, the full one mends structure.",
    "teacher": "match every step at the full resolution, where the teacher is right.",
}
WIDE, SMALL = 144, 64
"""Width of a picture in CSS pixels, on a laptop and on a phone."""


def verdict(probe: Probe) -> list[tuple[str, str]]:
    """Return the verdict as titles and plain sentences: trust, matching, crossing, upsampler and costs."""
    lines = [("Trust", " ".join(f"The teacher's {stage.size} {_trust(stage)}." for stage in probe.stages))]
    if not probe.judged:
        lines.append(("Caution", "There is no judge for these prompts: look at the pictures before you rely on this."))
    elif any(stage.loss is not None and undecided(stage.loss) for stage in probe.stages):
        lines.append(
            ("Caution", f"{probe.samples} samples do not decide how many go wrong: repeat it with more --samples.")
        )
    lines.append(("Matching", f"method.matching={probe.matching}: {WHY[probe.matching]}"))
    if probe.sigmas:
        lines.append(("Crossing", _crossing(probe)))
    enlarged = [f"from {stage.size}, {_errors(stage)}" for stage in probe.stages if stage.upsamplers]
    if enlarged:
        lines.append(("Upsampler", f"Error of enlarging latents: {'; '.join(enlarged)}."))
    cost, steps = probe.sampling
    full = probe.training["teacher"]
    chosen = probe.training[probe.matching]
    lines.append(
        (
            "Cost",
            f"The recipe's {'+'.join(map(str, probe.split))} steps cost {cost:.4g} full-resolution steps by area "
            f"({steps / cost:.2f}x less than {steps}). An iteration of training costs {chosen:.1f} evaluations at "
            f"{probe.size} with matching {probe.matching}"
            + (f", and {full:.1f} with teacher." if probe.matching != "teacher" else "."),
        )
    )
    return lines


def settings(probe: Probe) -> str:
    """Return the verdict as options of `rmd train`."""
    words = [] if probe.method == "rmd" else ["--set method.name=rmd"]
    words.append(f"--set method.matching={probe.matching}")
    if probe.sigmas:
        words.append(f'--set "plan.sides=[{", ".join(probe.sides)}]"')
        split, sigmas = (", ".join(f"{value:g}" for value in values) for values in (probe.split, probe.sigmas))
        words += [f'--set "plan.split=[{split}]"', f'--set "plan.cross_at.sigma=[{sigmas}]"']
    return " ".join(words)


def summary(probe: Probe) -> list[str]:
    """Return the verdict and the numbers behind it as lines for a terminal."""
    lines = [f"{title + ':':10} {text}" for title, text in verdict(probe)]
    # With many stages, only those that decide fit on a screen.
    few = len(probe.stages) < 3
    for stage in probe.stages if few else [each for each in probe.stages if each.matching == probe.matching][:2]:
        lines.append(f"Why, at {stage.size}:")
        lines += [
            f"  {row.measured:>14}  {row.name} (trusted: {row.trusted}{'' if row.decides else '; does not decide'})"
            for row in stage.criteria
        ]
        lines.append("  bits left bare, thousandths: " + ", ".join(f"{s:g}: {1000 * b:.1f}" for s, b in stage.bits))
    return [*lines, f"Use it:    {settings(probe)}"]


def write_probe(result: ProbeResult, folder: Path) -> Path:
    """Write probe.json and a self-contained probe.html to a new folder, and return the path of the page.

    Raises:
        RMDError: the folder cannot be written to.
    """
    html = page(result)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as partial:
        partial.mkdir()
        write_text(partial / "probe.json", result.probe.model_dump_json(indent=2) + "\n")
        write_text(partial / "probe.html", html)
    return folder / "probe.html"


def page(result: ProbeResult) -> str:
    """Return the whole page as HTML."""
    probe = result.probe
    return render(
        "probe.html.j2",
        title=f"rmd probe {probe.recipe}",
        heading=f"How far can the low resolution of {probe.teacher} be trusted?",
        making=f"{probe.samples} samples at each resolution, {probe.steps} steps, guidance {probe.guidance:g}, "
        f"seed {probe.seed}, recipe {probe.recipe}.",
        verdict=verdict(probe),
        settings=settings(probe),
        size=probe.size,
        few_bits=f"{1000 * FEW_BITS:g}",
        stages=[_stage(probe, stage, result) for stage in probe.stages],
        costs=_costs(probe),
        full_steps=str(probe.sampling[1]),
    )


def _trust(stage: StageProbe) -> str:
    """Say how far a low resolution can be trusted."""
    doubted = any(row.speaks_for == "teacher" and not row.decides for row in stage.criteria)
    return MENDED if stage.matching == "own" and doubted else TRUSTED[stage.matching]


def _errors(stage: StageProbe) -> str:
    return ", ".join(f"{name} {percent(error)}" for name, error in stage.upsamplers.items())


def _crossing(probe: Probe) -> str:
    wanted = ", ".join(f"{sigma:g}" for sigma in probe.sigmas)
    own = ", ".join(f"{sigma:.2f} ({1000 * bits:.1f})" for sigma, bits in probe.now)
    enough = all(dict(stage.bits)[stage.sigma] <= FEW_BITS for stage in probe.stages)
    few = f"{1000 * FEW_BITS:g} thousandths of a bit per latent value bare"
    reason = f"the cleanest level that leaves at most {few}" if enough else f"although even that leaves more than {few}"
    return f"plan.cross_at.sigma=[{wanted}], {reason}. This plan crosses at {own}."


def _stage(probe: Probe, stage: StageProbe, result: ProbeResult) -> dict[str, Any]:
    """Return everything that the template shows of one low resolution."""
    return {
        "size": stage.size,
        "criteria": HtmlTable(
            cells("", "measured", "trusted", "wrong", "speaks for"),
            [
                TableRow(cells(row.name, row.measured, row.trusted, row.wrong, row.speaks_for), row.decides)
                for row in stage.criteria
            ],
        ),
        "remark": f"Here: matching {stage.matching}."
        + ("" if probe.judged else " There is no judge for these prompts, so the spectra decide."),
        "pictures": _pictures(result.prompts, result.pictures[stage.size]),
        "readings": _readings(stage.readings) if stage.readings else None,
        "charts": _charts(stage.rings),
        "difference": "The pictures of a pair differ by "
        f"{percent(stage.difference.value)} of what separates pictures of different prompts (mean square, pooled).",
        "bits": _bits(stage),
        "upsamplers": _upsamplers(stage) if stage.upsamplers else None,
        "taps": ", ".join(f"{tap:g}" for tap in stage.taps),
    }


def _pictures(prompts: Sequence[str], kinds: Mapping[str, Tensor]) -> dict[str, Any]:
    width = next(iter(kinds.values())).shape[-1]
    lines = [
        (prompt, [(_source(pictures[index]), f"{label}: {prompt}") for label, pictures in kinds.items()])
        for index, prompt in enumerate(prompts)
    ]
    rendering = "pixelated" if width <= WIDE else "auto"
    return {"labels": list(kinds), "lines": lines, "wide": WIDE, "small": SMALL, "rendering": rendering}


def _source(picture: Tensor) -> str:
    if picture.ndim == 3:
        return image_data("png", png(to_image(picture)))
    return image_data("webp", webp([to_image(frame) for frame in picture.unbind(1)], fps=CLIP_FPS))


def _readings(readings: Sequence[Reading]) -> HtmlTable:
    metrics = metrics_in(reading.measures for reading in readings)
    heads = cells("", *(each.heading or each.title for each in metrics), "Distance to its counterpart")
    rows = []
    for reading in readings:
        values = [_cell(reading.measures[each.name], writer(metric(each.name), reading.measures[each.name]))
                  for each in metrics]  # fmt: skip
        apart = Cell("") if reading.distance is None else _cell(reading.distance, significant)
        rows.append(TableRow([Cell(reading.label), *values, apart]))
    return HtmlTable(heads, rows)


def _cell(measured: Measured, write: Any) -> Cell:
    return Cell(write(measured.value), "" if measured.interval is None else bounds(measured.interval, write))


def _bits(stage: StageProbe) -> HtmlTable:
    rows = [TableRow(cells(f"{s:.2f}", fixed(1000 * b, 2)), marked=s == stage.sigma) for s, b in stage.bits]
    return HtmlTable(cells("sigma at the crossing", "bits left bare, thousandths per latent value"), rows)


def _upsamplers(stage: StageProbe) -> HtmlTable:
    best = min(stage.upsamplers, key=lambda name: stage.upsamplers[name])
    rows = [TableRow(cells(name, percent(error)), marked=name == best) for name, error in stage.upsamplers.items()]
    return HtmlTable(cells("crossing.upsample", "error"), rows)


def _costs(probe: Probe) -> HtmlTable:
    rows = [TableRow(cells("a sample of the recipe's cascade", significant(probe.sampling[0])))]
    rows += [
        TableRow(cells(f"an iteration with method.matching={name}", significant(cost)), marked=name == probe.matching)
        for name, cost in probe.training.items()
    ]
    return HtmlTable(cells("", "evaluations"), rows)


def _charts(rings: Sequence[Ring]) -> list[dict[str, str]]:
    power = {"over the low band of the full latents": [ring.power for ring in rings]}
    recoded = [ring.recoded for ring in rings if ring.recoded is not None]
    if len(recoded) == len(rings):
        power["over pooled and encoded pictures"] = recoded
    shown = (
        ("Power of the low resolution", "1: as much as there should be.", power),
        ("Coherence", "1: the same structures at the same places. 0: unrelated.",
         {"with the low band of the full latents": [ring.coherence for ring in rings]}),
    )  # fmt: skip
    return [
        {"title": title, "caption": caption}
        | {
            name: image_data("svg+xml", draw_rings(title, rings, curves, theme))
            for name, theme in (("light", LIGHT), ("dark", DARK))
        }
        for title, caption, curves in shown
    ]


def draw_rings(title: str, rings: Sequence[Ring], curves: Mapping[str, Sequence[Measured]], theme: Theme) -> bytes:
    """Draw measures by ring as SVG without a background: lines through the rings' middles, and bands for intervals."""
    middles = [(ring.low + ring.high) / 2 for ring in rings]
    with drawing(title):
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for (label, values), colour in zip(curves.items(), theme.series, strict=False):
            axes.plot(middles, [each.value for each in values], color=colour, marker="o", markersize=4, label=label)
            ends = [each.interval or (each.value, each.value) for each in values]
            axes.fill_between(middles, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.2)
        axes.axhline(1.0, color=theme.ink, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel("spatial frequency", color=theme.ink, fontsize=10)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        use_theme(axes, theme)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=9, borderaxespad=0.2,
            labelcolor=theme.ink,
        )  # fmt: skip
        return svg(figure)
