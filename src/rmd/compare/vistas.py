"""The tables of the vistas, the world whose teacher is wrong in structure at its low resolution, as the paper's are.

The question of these tables is the paper's Tab. 3: does matching at the teacher's resolution, or at either resolution,
bring more right samples than the naive cascade does? The primary endpoint, which was named before the first of these
students was trained, is the share of right samples over six seeds, at 2+2 and at 3+1 steps. All other metrics are
secondary.

Rows have the sides of the packaged scenes, which are half of those of the vistas (see `rmd.compare.settings.SIDE`).
"""

from __future__ import annotations

from dataclasses import replace

from rmd.compare.settings import (
    DMD2,
    MATCHED,
    MIXED,
    NAIVE,
    PAPERS_NAIVE,
    PAPERS_RMD,
    RMD,
    SHIPPED,
    TDM,
    TEACHER_4,
    UNDISTILLED,
    Place,
    Setting,
    Table,
    rmd_row,
)

PRIMARY = "attributes"
"""The primary endpoint: the share of samples in which the judge reads everything that the caption names."""
SEEDS = 6
"""Number of seeds of the tables that answer the primary question."""

_EARLY = replace(SHIPPED, name="own-early", label="own matching, crossing at a sigma of 0.84, 2+2")
_THREE = (3, 1)


def _fields() -> tuple[Setting, ...]:
    """Return the rules of the noise between resolutions that the table of all rules leaves in question."""
    rows = []
    for rule, trained, sampled in (("block", 0.2, 0.2), ("plain", 0.2, 0.2), ("plain", 0.2, 1.0), ("block", 1.0, 1.0)):
        changes = (f"crossing.rule={rule}", f"crossing.train_beta={trained}", f"crossing.beta={trained}")
        name, label = f"{rule}-{trained:g}-{sampled:g}", f"{rule}, trained at {trained:g}, sampled at {sampled:g}"
        row = rmd_row(name, label, *changes, sampled=(f"crossing.beta={sampled}",))
        rows.append(replace(row, place=Place(f"{rule} noise", f"trained at beta {trained:g}", sampled)))
    return tuple(rows)


VISTAS = (
    Table(
        "vistas", "Methods where the low resolution is wrong", "Tab. 1, Tab. 3",
        "Does matching across resolutions keep the structure that the teacher's low resolution lacks?",
        (TEACHER_4, UNDISTILLED, TDM, DMD2, PAPERS_NAIVE, replace(MIXED, label="matched at either resolution, 2+2"),
         PAPERS_RMD, _EARLY),
        against="naive", backbones=("vistas",), seeds=SEEDS,
    ),
    Table(
        "vistas-three", "The same with three steps at the low resolution", "Tab. 3, Tab. 4",
        "Does it keep the structure if three of four steps run at the low resolution?",
        (replace(NAIVE, label="naive cascade, 3+1", split=_THREE),
         replace(MIXED, label="matched at either resolution, 3+1", split=_THREE),
         replace(RMD, label="RMD, 3+1", split=_THREE)),
        against="naive", backbones=("vistas",), seeds=SEEDS,
    ),
    Table(
        "vistas-components", "Cross-resolution matching and upsampling", "Tab. 3",
        "What do the matching (RM) and the upsampling (UP) bring, each alone and together?",
        (Setting("low", "neither: 4 steps at 64 px", split=(4,), sides=(32,), changes=("method.name=tdm",)),
         Setting("rm", "RM alone: 4 steps at 64 px, matched at 128 px", split=(4,), sides=(32,),
                 changes=(*MATCHED, "plan.match_side=[128, 128]")),
         replace(NAIVE, label="UP alone: naive cascade"), replace(RMD, label="RM and UP: RMD")),
        against="rmd", backbones=("vistas",), seeds=3,
    ),
    Table(
        "vistas-thresholds", "Steps at the low resolution", "Tab. 4",
        "How many of four steps can run at the low resolution?",
        (rmd_row("0+4", "0+4", split=(4,), sides=(64,)), rmd_row("1+3", "1+3", split=(1, 3)),
         replace(RMD, label="2+2"), rmd_row("3+1", "3+1", split=(3, 1))),
        against="rmd", backbones=("vistas",), seeds=3,
    ),
    Table(
        "vistas-stages", "Two stages and three", "Tab. 5",
        "Does a third, lower resolution save more without a loss? The teacher has never seen 32 px.",
        (rmd_row("0+4", "one stage: 4 steps at 128 px", split=(4,), sides=(64,)),
         replace(RMD, label="2+2: 64, 128 px"),
         rmd_row("1+1+2", "1+1+2: 32, 64, 128 px", split=(1, 1, 2), sides=(16, 32, 64)),
         rmd_row("2+1+1", "2+1+1: 32, 64, 128 px", split=(2, 1, 1), sides=(16, 32, 64))),
        against="rmd", backbones=("vistas",), seeds=3,
    ),
    Table(
        "vistas-reinjection", "Noise between resolutions", "Fig. 8",
        "Do the noise rule and beta, in training and in sampling, matter here?",
        _fields(), against="block-0.2-0.2", backbones=("vistas",), seeds=3,
    ),
)  # fmt: skip
