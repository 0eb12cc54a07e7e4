"""The tables: their rows, the row they are compared with, and the paper's own numbers.

The paper's numbers come from other models, data and measures: they show in which direction a claim points, and are no
targets.
"""

from __future__ import annotations

from dataclasses import replace

from rmd.compare.screening import PRESCREENING, SCREENING
from rmd.compare.settings import (
    CROSSING,
    DMD2,
    DMD2_IMAGES,
    MATCHED,
    MIXED,
    NAIVE,
    PAPERS_NAIVE,
    PAPERS_RMD,
    RMD,
    SCALE_WISE,
    SHARES,
    SHIPPED,
    SHIPPED_UNDISTILLED,
    SWITCHED,
    SWITCHED_OFFICIAL,
    TDM,
    TEACHER,
    TEACHER_4,
    UNDISTILLED,
    Place,
    Setting,
    Table,
    rmd_row,
)
from rmd.compare.vistas import VISTAS

_MIXED = replace(MIXED, label="matched at either resolution at the paper's times, 2+2")


def _paper(
    sdxl: float | None = None, pixart: float | None = None, sd3: float | None = None, *, speed: float | None = None
) -> dict[str, dict[str, str]]:
    """Return the paper's HPSv2.1 of each backbone, and the speed-up, which is SDXL's; None if the paper gives none."""
    scores = {"sdxl": sdxl, "pixart": pixart, "sd3": sd3}
    numbers = {backbone: {"HPSv2.1": f"{score:.2f}"} for backbone, score in scores.items() if score is not None}
    if speed is not None:
        numbers.setdefault("sdxl", {})["speed-up"] = f"{speed:.2f}x"
    return numbers


def _pixarts(score: float, speed: float) -> dict[str, dict[str, str]]:
    """Return HPSv2.1 and speed-up of PixArt, the backbone of the paper's Tab. 4, for a table of the SDXL type."""
    return {"sdxl": {"HPSv2.1 of PixArt": f"{score:.2f}", "speed-up of PixArt": f"{speed:.2f}x"}}


def _re_injection() -> tuple[Setting, ...]:
    rows = []
    for rule in ("plain", "corrected", "block"):
        for trained in (0.2, 0.5, 1.0):
            for beta in (0.0, 0.2, 0.5, 1.0):
                changes = (f"crossing.rule={rule}", f"crossing.train_beta={trained}", f"crossing.beta={trained}")
                name, label = f"{rule}-{trained:g}-{beta:g}", f"{rule}, trained at {trained:g}, sampled at {beta:g}"
                row = rmd_row(name, label, *changes, sampled=(f"crossing.beta={beta}",))
                rows.append(replace(row, place=Place(f"{rule} noise", f"trained at beta {trained:g}", beta)))
    return tuple(rows)


def _adapters(rank: int, *changes: str, name: str = "", label: str = "") -> Setting:
    """Return RMD with adapters of a rank, at twice the learning rates that the recipe has for whole networks."""
    # With one seed, four times the rates does as well; ten times breaks students (two of three, if only the
    # transformers are adapted).
    made = ("roles.mode=lora", f"roles.rank={rank}", f"roles.alpha={rank}")
    rates = ("optim.student_lr=1e-3", "optim.fake_lr=2e-3")
    return rmd_row(name or f"lora-{rank}", label or f"adapters of rank {rank}", *made, *rates, *changes)


TABLES = {
    table.name: table
    for table in (
        Table(
            "main", "Methods under one budget", "Tab. 1",
            "Does RMD at 2+2 steps keep what TDM and DMD2 reach with four full-resolution steps, on every backbone?",
            (replace(TEACHER, paper=_paper(29.14, 30.74, 30.29)), TEACHER_4, UNDISTILLED,
             replace(DMD2, paper=_paper(31.30, 31.36, 30.42)), DMD2_IMAGES,
             replace(TDM, paper=_paper(31.93, 32.05, 30.03)), SWITCHED, SWITCHED_OFFICIAL, SCALE_WISE, NAIVE,
             replace(PAPERS_RMD, paper=_paper(31.99, 32.23, 30.56)),
             SHIPPED_UNDISTILLED, SHIPPED),
            against="rmd", backbones=("sdxl", "pixart", "sd3"),
        ),
        Table(
            "components", "Cross-resolution matching and upsampling", "Tab. 3",
            "What do the matching (RM) and the upsampling (UP) bring, each alone and together?",
            (Setting("low", "neither: 4 steps at 32 px", split=(4,), sides=(32,), changes=("method.name=tdm",)),
             Setting("rm", "RM alone: 4 steps at 32 px, matched at 64 px", split=(4,), sides=(32,),
                     changes=(*MATCHED, "plan.match_side=[64, 64]")),
             replace(NAIVE, label="UP alone: naive cascade", paper=_paper(29.57)),
             replace(RMD, label="RM and UP: RMD", paper=_paper(31.99)),
             replace(NAIVE, name="naive-3+1", label="UP alone, three steps at 32 px", split=(3, 1)),
             rmd_row("rmd-3+1", "RM and UP, three steps at 32 px", split=(3, 1))),
            against="rmd",
        ),
        Table(
            "thresholds", "Steps at the low resolution", "Tab. 4",
            "How many of four steps can run at the low resolution?",
            (rmd_row("0+4", "0+4", split=(4,), sides=(64,), paper=_pixarts(32.05, 1.0)),
             rmd_row("1+3", "1+3", split=(1, 3), paper=_pixarts(32.12, 1.25)),
             replace(RMD, label="2+2", paper=_pixarts(32.13, 1.68)),
             rmd_row("3+1", "3+1", split=(3, 1), paper=_pixarts(24.79, 2.54))),
            against="rmd",
        ),
        Table(
            "stages", "Two stages and three", "Tab. 5",
            "Does a third, lower resolution save more without a loss? The teacher has never seen 16 px.",
            (rmd_row("0+4", "one stage: 4 steps at 64 px", split=(4,), sides=(64,)),
             replace(RMD, label="2+2: 32, 64 px", paper=_paper(31.99, speed=1.56)),
             rmd_row("1+1+2", "1+1+2: 16, 32, 64 px", split=(1, 1, 2), sides=(16, 32, 64), paper=_paper(speed=1.73)),
             rmd_row("1+2+1", "1+2+1: 16, 32, 64 px", split=(1, 2, 1), sides=(16, 32, 64), paper=_paper(speed=2.54)),
             rmd_row("2+1+1", "2+1+1: 16, 32, 64 px", split=(2, 1, 1), sides=(16, 32, 64), paper=_paper(speed=2.90)),
             *(replace(NAIVE, name=f"naive-{name}", label=f"naive cascade, {name}", split=split, sides=(16, 32, 64))
               for name, split in (("1+1+2", (1, 1, 2)), ("2+1+1", (2, 1, 1))))),
            against="rmd",
        ),
        Table(
            "reinjection", "Noise between resolutions", "Fig. 8",
            "Which noise rule and which beta, in training and in sampling?",
            _re_injection(), against="block-0.2-0.2",
        ),
        Table(
            "mapping", "Timestep map of the low resolution", "Eq. 2",
            "Should the low-resolution steps run at a raised time, the schedule's own, a lower one or the same?",
            tuple(rmd_row(f"map-{name}", name, f"plan.map={name}") for name in ("raise", "vp", "lower", "none")),
            against="map-raise",
        ),
        Table(
            "warmup", "Warm-up on the low resolution", "Sec. 3.4",
            "How much of the run should train the first stage alone?",
            tuple(rmd_row(f"warm-up-{share:g}", f"{share:.0%} of the run", warm_up=share) for share in SHARES),
            against="warm-up-0.2",
        ),
        Table(
            "remedies", "What brings RMD nearer to TDM and to the teacher", "not in the paper",
            "What do a larger first stage, more updates, other times and noise of the scores, longer runs bring?",
            (TDM, RMD,
             rmd_row("first-48", "first stage at 48 px", sides=(48, 64)),
             rmd_row("fake-2", "two fake updates", "method.fake_updates=2"),
             rmd_row("second-2", "second stage trained twice as often", "method.stage_draws=[1, 2]"),
             rmd_row("tau-above", "scores from the segment upwards", "method.tau=above"),
             rmd_row("tau-fresh", "scores with fresh noise alone", "method.tau_noise=fresh"),
             rmd_row("above-second-2", "segment upwards, second stage twice as often", "method.tau=above",
                  "method.stage_draws=[1, 2]"),
             replace(RMD, name="longer", label="RMD, twice the training", budget=2.0),
             replace(TDM, name="tdm-longer", label="TDM, twice the training", budget=2.0)),
            against="rmd",
        ),
        SCREENING,
        PRESCREENING,
        Table(
            "shipped", "The packaged recipes beside their rivals", "not in the paper",
            "How near does what the recipes do by default come to four full-resolution steps, at what speed?",
            (TDM, replace(DMD2, backbones=("sdxl",)),
             replace(PAPERS_NAIVE, backbones=("sdxl",)), replace(PAPERS_RMD, backbones=("sdxl",)),
             SHIPPED_UNDISTILLED, SHIPPED),
            against="tdm", backbones=("sdxl", "pixart", "sd3"), seeds=6,
        ),
        Table(
            "confirm", "RMD and its rivals with six seeds", "Tab. 1, Tab. 3",
            "The table of methods has three seeds. Do six confirm the differences from RMD with the paper's times and "
            "matching?",
            (TDM, DMD2, UNDISTILLED, PAPERS_NAIVE, _MIXED, PAPERS_RMD, SHIPPED),
            against="rmd", seeds=6,
        ),
        Table(
            "matching", "Matching where the low resolution can be trusted", "not in the paper",
            "`rmd probe` recommends to match the steps at 32 px at their own resolution. Is it right?",
            (replace(SHIPPED, label="matched at its own resolution, as recommended"),
             replace(SHIPPED, name="shipped-teacher", label="matched at the teacher's resolution",
                     changes=(*CROSSING, *MATCHED))),
            against="shipped", backbones=("sdxl", "pixart", "sd3"),
        ),
        Table(
            "matching-16", "Matching where the low resolution is wrong", "not in the paper",
            "At 16 px the teacher is wrong in most of what it could show, but few samples that it finishes from there "
            "are: `rmd probe` recommends own matching for 16 to 64 px. Is it right?",
            tuple(replace(SHIPPED, name=f"{matching}-16", label=label, sides=(16, 64),
                          changes=(*CROSSING, "plan.cross_at={sigma: [0.85]}", f"method.matching={matching}"))
                  for matching, label in (("own", "matched at its own resolution, as recommended"),
                                          ("teacher", "matched at the teacher's resolution"))),
            against="own-16", seeds=6,
        ),
        *VISTAS,
        Table(
            "moving", "Matching and warm-up on the moving scenes", "not in the paper",
            "What do matching at the teacher's resolution and the warm-up bring to a cascade of clips?",
            (TDM, UNDISTILLED, replace(RMD, label="RMD with the paper's warm-up, 2+2"),
             replace(RMD, name="rmd-cold", label="RMD without a warm-up, 2+2", warm_up=0.0),
             replace(NAIVE, label="naive cascade with the warm-up, 2+2"),
             replace(NAIVE, name="naive-cold", label="naive cascade without a warm-up, 2+2", warm_up=0.0)),
            against="rmd", backbones=("wan",), seeds=2, samples=256,
        ),
        Table(
            "roles", "How student, fake score and teacher share weights", "App. B",
            "Do two adapters on one frozen base do what three networks do?",
            (replace(RMD, label="three networks"),
             replace(_adapters(8), backbones=("sdxl",)), _adapters(16), replace(_adapters(32), backbones=("sdxl",)),
             replace(_adapters(16, "roles.layers=transformers", name="lora-16-transformers",
                               label="rank 16, on the transformers alone"), backbones=("sdxl",))),
            against="rmd", backbones=("sdxl", "pixart"),
        ),
    )
}  # fmt: skip
"""All tables by name."""
