"""The rows of the tables: changes of one recipe, which are trained and sampled on every backbone alike.

A row changes the recipe of a backbone's packaged teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

BACKBONES = {
    "sdxl": "scenes", "pixart": "scenes-pixart", "sd3": "scenes-sd3", "vistas": "vistas", "wan": "scenes-wan",
}  # fmt: skip
"""Recipes of the packaged teachers: of the scenes by their family, and of the vistas, which is of the SDXL type."""
SIDE = 64
"""Side of the teachers in pixels for which the rows are written."""
WARM_UP = 0.2
"""Share of a cascade's iterations that train only its first stage."""
SHARES = (0.0, 0.1, 0.2, 0.4)
"""The warm-ups that are compared, as shares of the run."""
FRESH = ("crossing.rule=plain", "crossing.beta=0", "crossing.train_beta=0", "crossing.within=fresh")


@dataclass(frozen=True)
class Place:
    """Position of a row in its table's chart."""

    panel: str
    line: str
    x: float


@dataclass(frozen=True)
class Setting:
    """A row of a table: a student that is trained and sampled by a changed recipe, or the teacher sampled by one.

    Attributes:
        split: number of steps of every stage; one number means one resolution.
        sides: sides of the stages in pixels, for a teacher of `SIDE`; those of other teachers are in proportion.
        changes: changes of the recipe, as `key=value`.
        sampled: further changes for the sampling only.
        switched: another split and its sides, for the sampling only.
        official: whether it is sampled by diffusers' `FlowMatchLCMScheduler` with the plan's teacher times and sides.
        backbones: the backbones that have this row; by default all of the table's.
        budget: training budget relative to that of the other rows.
        trained: False for the teacher's own weights, sampled with guidance.
        warm_up: share of the iterations that train only the first stage, if there are several.
        paper: the paper's numbers by backbone and column.
        place: position in the chart of a table whose rows form a grid.
    """

    name: str
    label: str
    split: tuple[int, ...] = (2, 2)
    sides: tuple[int, ...] = (32, 64)
    changes: tuple[str, ...] = ()
    sampled: tuple[str, ...] = ()
    switched: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    official: bool = False
    backbones: tuple[str, ...] | None = None
    budget: float = 1.0
    trained: bool = True
    warm_up: float = WARM_UP
    paper: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    place: Place | None = None


@dataclass(frozen=True)
class Table:
    """Rows that answer one question.

    Attributes:
        source: table, figure or section of the paper.
        question: the question, as the page prints it.
        against: the row that every other one is compared with.
        seeds: number of seeds with the default budget; None: the budget's.
        samples: most samples that are judged; None: the budget's number.
    """

    name: str
    title: str
    source: str
    question: str
    rows: tuple[Setting, ...]
    against: str
    backbones: tuple[str, ...] = ("sdxl",)
    seeds: int | None = None
    samples: int | None = None

    def rows_of(self, backbone: str) -> tuple[Setting, ...]:
        """Return the rows of a backbone."""
        return tuple(row for row in self.rows if row.backbones is None or backbone in row.backbones)


MATCHED = ("method.matching=teacher",)
"""The paper's matching, which the recipes of the packaged teachers do not have."""
RMD = Setting("rmd", "RMD, 2+2", changes=MATCHED)
TEACHER = Setting("teacher", "teacher, 25 steps", split=(25,), sides=(64,), trained=False)
TEACHER_4 = Setting("teacher-4", "teacher, 4 steps", split=(4,), sides=(64,), trained=False)
UNDISTILLED = Setting("cascade-undistilled", "teacher as a 2+2 cascade", trained=False)
TDM = Setting("tdm", "TDM, 4 steps", split=(4,), sides=(64,), changes=("method.name=tdm",))
SWITCHED = replace(TDM, name="switched", label="TDM's student run as 2+2, training-free", switched=((2, 2), (32, 64)))
SWITCHED_OFFICIAL = replace(
    SWITCHED, name="switched-official", label="the same by diffusers' FlowMatchLCMScheduler", official=True,
    backbones=("sd3",),
)  # fmt: skip
DMD2 = Setting(
    "dmd2", "DMD2, 4 steps", split=(4,), sides=(64,),
    changes=("method.name=dmd2", "crossing.within=fresh", "method.tau=all", "method.metric=l2",
             "method.fake_weight=noise", "method.fake_updates=5"),
)  # fmt: skip
DMD2_IMAGES = replace(
    DMD2, name="dmd2-images", label="DMD2 with its adversarial loss, on renders",
    changes=(*DMD2.changes, "method.adversarial=0.005", "method.adversarial_fake=0.01", "data.images=scenes"),
)  # fmt: skip
NAIVE = Setting("naive", "naive cascade, 2+2 (UP without RM)", changes=("method.matching=own",))
PAPERS_RMD = replace(RMD, label="RMD with the paper's times and matching, 2+2")
PAPERS_NAIVE = replace(NAIVE, label="naive cascade at the paper's times, 2+2")
MIXED = Setting("mixed", "matched at either resolution, 2+2", changes=("method.matching=mixed",))
CROSSING = ("plan.steps=4", "plan.split=[2, 2]", "plan.cross_at={sigma: [0.84]}")
"""Two steps in each of two stages, and an earlier crossing than the paper's."""
SHIPPED = Setting(
    "shipped",
    "as shipped, 2+2: own matching, earlier crossing",
    changes=(*CROSSING, "method.matching=own"),
    warm_up=0.0,
)
"""This row trains and samples as the recipes of the packaged teachers do by default."""
SHIPPED_UNDISTILLED = replace(
    UNDISTILLED, name="cascade-shipped", label="teacher as the same cascade, 2+2", changes=CROSSING
)
SCALE_WISE = Setting(
    "swd", "scale-wise (SwD's matching), 2+1+1", split=(2, 1, 1), sides=(32, 48, 64),
    changes=("method.matching=own", *FRESH, "method.tau=all"),
)  # fmt: skip


def rmd_row(
    name: str, label: str, *changes: str, split: tuple[int, ...] = RMD.split, sides: tuple[int, ...] = RMD.sides,
    sampled: tuple[str, ...] = (), warm_up: float = WARM_UP, paper: Mapping[str, Mapping[str, str]] | None = None,
) -> Setting:  # fmt: skip
    """Return a row of RMD."""
    return Setting(name, label, split, sides, (*MATCHED, *changes), sampled, warm_up=warm_up, paper=paper or {})
