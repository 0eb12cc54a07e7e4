"""The tables: their rows as changes of one recipe, the row they are compared with, and the paper's own numbers.

A row changes the recipe of a backbone's packaged teacher. The paper's numbers come from other models, data and
measures: they show in which direction a claim points, and are no targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

BACKBONES = {"sdxl": "scenes", "pixart": "scenes-pixart", "sd3": "scenes-sd3"}
"""Recipes of the packaged teachers by their family."""
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
        sides: sides of the stages in pixels.
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
    """

    name: str
    title: str
    source: str
    question: str
    rows: tuple[Setting, ...]
    against: str
    backbones: tuple[str, ...] = ("sdxl",)
    seeds: int | None = None

    def rows_of(self, backbone: str) -> tuple[Setting, ...]:
        """Return the rows of a backbone."""
        return tuple(row for row in self.rows if row.backbones is None or backbone in row.backbones)


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


RMD = Setting("rmd", "RMD, 2+2")
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
SCALE_WISE = Setting(
    "swd", "scale-wise (SwD's matching), 2+1+1", split=(2, 1, 1), sides=(32, 48, 64),
    changes=("method.matching=own", *FRESH, "method.tau=all"),
)  # fmt: skip


def _rmd(
    name: str, label: str, *changes: str, split: tuple[int, ...] = RMD.split, sides: tuple[int, ...] = RMD.sides,
    sampled: tuple[str, ...] = (), warm_up: float = WARM_UP, paper: Mapping[str, Mapping[str, str]] | None = None,
) -> Setting:  # fmt: skip
    return Setting(name, label, split, sides, changes, sampled, warm_up=warm_up, paper=paper or {})


def _at(
    name: str, label: str, *changes: str, times: tuple[int, ...] = (1000, 900, 750, 375),
    split: tuple[int, ...] = RMD.split, sides: tuple[int, ...] = RMD.sides, warm_up: float = WARM_UP,
) -> Setting:  # fmt: skip
    """Return a cascade at times of its own."""
    placed = (f"plan.times={list(times)}", f"plan.split={list(split)}")
    return _rmd(name, label, *placed, *changes, split=split, sides=sides, warm_up=warm_up)


OWN = "method.matching=own"


def _screening() -> tuple[Setting, ...]:
    """Return what might bring a cascade of the cost of 2+2 steps level with four full-resolution steps."""
    return (
        _at("own", "matched at its own resolution, times 1000, 900, 750, 375", OWN),
        TDM, RMD, NAIVE,
        _at("teacher", "matched at the teacher's resolution"),
        _at("mixed", "matched at either resolution", "method.matching=mixed"),
        _at("own-700", "times 1000, 850, 700, 350", OWN, times=(1000, 850, 700, 350)),
        _at("own-800", "times 1000, 900, 800, 400", OWN, times=(1000, 900, 800, 400)),
        _at("own-850", "times 1000, 925, 850, 425", OWN, times=(1000, 925, 850, 425)),
        _at("own-450", "times 1000, 900, 750, 450", OWN, times=(1000, 900, 750, 450)),
        _at("own-fit", "times of the planner, 1000, 830, 650, 290", OWN, times=(1000, 830, 650, 290)),
        _at("own-trajectory", "exact scores of the next state", OWN, "method.tau_noise=trajectory"),
        _at("teacher-trajectory", "exact scores of the next state, at the teacher's resolution",
            "method.tau_noise=trajectory"),
        _at("own-dct", "upsampled by the DCT", OWN, "crossing.upsample=dct"),
        _at("teacher-dct", "upsampled by the DCT, at the teacher's resolution", "crossing.upsample=dct"),
        _at("own-lower", "scores' times lowered to what the full resolution sees", OWN, "method.tau_shift=0.5"),
        _at("teacher-raised", "scores' times raised to what the low resolution sees", "method.tau_shift=2"),
        _at("own-guidance-4", "guidance 4", OWN, "method.guidance=4"),
        _at("own-guidance-below", "guidance read at cleaner times", OWN, "method.guidance_tau=below"),
        _at("own-low-guidance", "guidance 1.5 in the low stage", OWN, "method.stage_guidance=[1.5, 3.0]"),
        _at("teacher-low-guidance", "guidance 1.5 in the low stage, at the teacher's resolution",
            "method.stage_guidance=[1.5, 3.0]"),
        _at("own-decay", "learning rates that fall to 0 over 50 iterations", OWN, "optim.lr_decay=50"),
        _at("own-huber", "pseudo-Huber of each value", OWN, "method.metric=pseudo_huber_elements"),
        _at("own-unclipped", "gradients that are not clipped", OWN, "optim.clip_norm=1000000"),
        _at("own-no-warm-up", "no warm-up", OWN, warm_up=0.0),
        _at("own-1+2", "one step at 48 px, two at 64 px", OWN, times=(1000, 750, 375), split=(1, 2), sides=(48, 64)),
        _at("teacher-1+2", "one step at 48 px, at the teacher's resolution", times=(1000, 750, 375), split=(1, 2),
            sides=(48, 64)),
        _at("teacher-1+2+1", "1+2+1 at 32, 48, 64 px, at the teacher's resolution", "crossing.upsample=dct",
            times=(1000, 850, 650, 350), split=(1, 2, 1), sides=(32, 48, 64)),
    )  # fmt: skip


def _re_injection() -> tuple[Setting, ...]:
    rows = []
    for rule in ("plain", "corrected", "block"):
        for trained in (0.2, 0.5, 1.0):
            for beta in (0.0, 0.2, 0.5, 1.0):
                changes = (f"crossing.rule={rule}", f"crossing.train_beta={trained}", f"crossing.beta={trained}")
                name, label = f"{rule}-{trained:g}-{beta:g}", f"{rule}, trained at {trained:g}, sampled at {beta:g}"
                row = _rmd(name, label, *changes, sampled=(f"crossing.beta={beta}",))
                rows.append(replace(row, place=Place(f"{rule} noise", f"trained at beta {trained:g}", beta)))
    return tuple(rows)


def _adapters(rank: int, *changes: str, name: str = "", label: str = "") -> Setting:
    """Return RMD with adapters of a rank, at twice the learning rates that the recipe has for whole networks."""
    # With one seed, four times the rates does as well; ten times breaks students (two of three, if only the
    # transformers are adapted).
    made = ("roles.mode=lora", f"roles.rank={rank}", f"roles.alpha={rank}")
    rates = ("optim.student_lr=1e-3", "optim.fake_lr=2e-3")
    return _rmd(name or f"lora-{rank}", label or f"adapters of rank {rank}", *made, *rates, *changes)


TABLES = {
    table.name: table
    for table in (
        Table(
            "main", "Methods under one budget", "Tab. 1",
            "Does RMD at 2+2 steps keep what TDM and DMD2 reach with four full-resolution steps, on every backbone?",
            (replace(TEACHER, paper=_paper(29.14, 30.74, 30.29)), TEACHER_4, UNDISTILLED,
             replace(DMD2, paper=_paper(31.30, 31.36, 30.42)), DMD2_IMAGES,
             replace(TDM, paper=_paper(31.93, 32.05, 30.03)), SWITCHED, SWITCHED_OFFICIAL, SCALE_WISE, NAIVE,
             replace(RMD, paper=_paper(31.99, 32.23, 30.56))),
            against="rmd", backbones=("sdxl", "pixart", "sd3"),
        ),
        Table(
            "components", "Cross-resolution matching and upsampling", "Tab. 3",
            "What do the matching (RM) and the upsampling (UP) bring, each alone and together?",
            (Setting("low", "neither: 4 steps at 32 px", split=(4,), sides=(32,), changes=("method.name=tdm",)),
             Setting("rm", "RM alone: 4 steps at 32 px, matched at 64 px", split=(4,), sides=(32,),
                     changes=("plan.match_side=[64, 64]",)),
             replace(NAIVE, label="UP alone: naive cascade", paper=_paper(29.57)),
             replace(RMD, label="RM and UP: RMD", paper=_paper(31.99)),
             replace(NAIVE, name="naive-3+1", label="UP alone, three steps at 32 px", split=(3, 1)),
             _rmd("rmd-3+1", "RM and UP, three steps at 32 px", split=(3, 1))),
            against="rmd",
        ),
        Table(
            "thresholds", "Steps at the low resolution", "Tab. 4",
            "How many of four steps can run at the low resolution?",
            (_rmd("0+4", "0+4", split=(4,), sides=(64,), paper=_pixarts(32.05, 1.0)),
             _rmd("1+3", "1+3", split=(1, 3), paper=_pixarts(32.12, 1.25)),
             replace(RMD, label="2+2", paper=_pixarts(32.13, 1.68)),
             _rmd("3+1", "3+1", split=(3, 1), paper=_pixarts(24.79, 2.54))),
            against="rmd",
        ),
        Table(
            "stages", "Two stages and three", "Tab. 5",
            "Does a third, lower resolution save more without a loss? The teacher has never seen 16 px.",
            (_rmd("0+4", "one stage: 4 steps at 64 px", split=(4,), sides=(64,)),
             replace(RMD, label="2+2: 32, 64 px", paper=_paper(31.99, speed=1.56)),
             _rmd("1+1+2", "1+1+2: 16, 32, 64 px", split=(1, 1, 2), sides=(16, 32, 64), paper=_paper(speed=1.73)),
             _rmd("1+2+1", "1+2+1: 16, 32, 64 px", split=(1, 2, 1), sides=(16, 32, 64), paper=_paper(speed=2.54)),
             _rmd("2+1+1", "2+1+1: 16, 32, 64 px", split=(2, 1, 1), sides=(16, 32, 64), paper=_paper(speed=2.90)),
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
            tuple(_rmd(f"map-{name}", name, f"plan.map={name}") for name in ("raise", "vp", "lower", "none")),
            against="map-raise",
        ),
        Table(
            "warmup", "Warm-up on the low resolution", "Sec. 3.4",
            "How much of the run should train the first stage alone?",
            tuple(_rmd(f"warm-up-{share:g}", f"{share:.0%} of the run", warm_up=share) for share in SHARES),
            against="warm-up-0.2",
        ),
        Table(
            "remedies", "What brings RMD nearer to TDM and to the teacher", "not in the paper",
            "What do a larger first stage, more updates, other times and noise of the scores, longer runs bring?",
            (TDM, RMD,
             _rmd("first-48", "first stage at 48 px", sides=(48, 64)),
             _rmd("fake-2", "two fake updates", "method.fake_updates=2"),
             _rmd("second-2", "second stage trained twice as often", "method.stage_draws=[1, 2]"),
             _rmd("tau-above", "scores from the segment upwards", "method.tau=above"),
             _rmd("tau-fresh", "scores with fresh noise alone", "method.tau_noise=fresh"),
             _rmd("above-second-2", "segment upwards, second stage twice as often", "method.tau=above",
                  "method.stage_draws=[1, 2]"),
             replace(RMD, name="longer", label="RMD, twice the training", budget=2.0),
             replace(TDM, name="tdm-longer", label="TDM, twice the training", budget=2.0)),
            against="rmd",
        ),
        Table(
            "screening", "Times, matching and scores of a cascade", "not in the paper",
            "Which times, which resolution of the matching and which scores come near four full-resolution steps?",
            _screening(), against="own", seeds=2,
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
