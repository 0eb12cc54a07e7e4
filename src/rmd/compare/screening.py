"""The screenings: what might bring a cascade of the cost of 2+2 steps level with four full-resolution steps.

Most rows change one setting of the first, `own`: a cascade at the times 1000, 900, 750 and 375 whose steps are all
matched at their own resolution and trained from the start. The first screening, `prescreening`, was made with the
paper's warm-up.
"""

from __future__ import annotations

from dataclasses import replace

from rmd.compare.settings import NAIVE, RMD, TDM, WARM_UP, Setting, Table, rmd_row

TIMES = (1000, 900, 750, 375)
"""Teacher times of the rows that name no others: on the SDXL type, the full resolution begins at sigma 0.84."""
OWN = "method.matching=own"


def _cascade(
    name: str, label: str, *changes: str, times: tuple[int, ...] = TIMES, split: tuple[int, ...] = RMD.split,
    sides: tuple[int, ...] = RMD.sides, warm_up: float = 0.0,
) -> Setting:  # fmt: skip
    """Return a row with times of its own and, by default, no warm-up."""
    placed = (f"plan.times={list(times)}", f"plan.split={list(split)}")
    return rmd_row(name, label, *placed, *changes, split=split, sides=sides, warm_up=warm_up)


def _warm(
    name: str, label: str, *changes: str, times: tuple[int, ...] = TIMES, split: tuple[int, ...] = RMD.split,
    sides: tuple[int, ...] = RMD.sides,
) -> Setting:  # fmt: skip
    """Return a row with times of its own and the paper's warm-up."""
    return _cascade(f"warm-{name}", label, *changes, times=times, split=split, sides=sides, warm_up=WARM_UP)


def _guidance(low: float, full: float) -> str:
    return f"method.stage_guidance=[{low}, {full}]"


_FAKE_2 = _cascade("own-fake-2", "two fake updates", OWN, "method.fake_updates=2")
_ROWS = (
    _cascade("own", "matched at its own resolution, times 1000, 900, 750, 375", OWN),
    TDM, RMD, NAIVE,
    Setting("tdm-700", "TDM at times 1000, 850, 700, 350", split=(4,), sides=(64,),
            changes=("method.name=tdm", "plan.times=[1000, 850, 700, 350]")),
    _cascade("teacher", "matched at the teacher's resolution"),
    _cascade("mixed", "matched at either resolution", "method.matching=mixed"),
    _cascade("own-800", "times 1000, 900, 800, 400", OWN, times=(1000, 900, 800, 400)),
    _cascade("own-450", "times 1000, 900, 750, 450", OWN, times=(1000, 900, 750, 450)),
    _cascade("own-late", "times 1000, 850, 750, 375", OWN, times=(1000, 850, 750, 375)),
    _cascade("own-fit", "times of the planner, 1000, 830, 650, 290", OWN, times=(1000, 830, 650, 290)),
    _cascade("own-low-guidance", "guidance 1.5 in the low stage", OWN, _guidance(1.5, 3.0)),
    _cascade("own-low-guidance-4", "guidance 1.5 in the low stage, 4 in the full one", OWN, _guidance(1.5, 4.0)),
    _cascade("teacher-low-guidance", "guidance 1.5 in the low stage, at the teacher's resolution", _guidance(1.5, 3.0)),
    _cascade("own-decay", "learning rates that fall to 0 over 50 iterations", OWN, "optim.lr_decay=50"),
    _cascade("own-slow", "a quarter of the student's learning rate", OWN, "optim.student_lr=1.25e-4"),
    _cascade("own-huber", "pseudo-Huber of each value", OWN, "method.metric=pseudo_huber_elements"),
    _cascade("own-eta", "noise between steps half fresh", OWN, "crossing.eta=0.5"),
    _FAKE_2,
    replace(_FAKE_2, name="own-fake-2-longer", label="two fake updates, as many iterations", budget=15 / 13),
    _cascade("own-no-ema", "the student's last weights, not their average", OWN, "optim.ema=0"),
    _cascade("own-ema-99", "averaged twice as long, optim.ema of 0.99", OWN, "optim.ema=0.99"),
    _cascade("own-second-2", "second stage trained twice as often", OWN, "method.stage_draws=[1, 2]"),
    _cascade("own-unclipped", "gradients that are not clipped", OWN, "optim.clip_norm=1000000"),
    _cascade("own-dct", "upsampled by the DCT", OWN, "crossing.upsample=dct"),
    _cascade("own-lower", "scores' times lowered to what the full resolution sees", OWN, "method.tau_shift=0.5"),
    _cascade("teacher-raised", "scores' times raised to what the low resolution sees", "method.tau_shift=2"),
)  # fmt: skip

_WARM_ROWS = (
    _warm("own", "matched at its own resolution, times 1000, 900, 750, 375", OWN),
    _warm("mixed", "matched at either resolution", "method.matching=mixed"),
    _warm("own-700", "times 1000, 850, 700, 350", OWN, times=(1000, 850, 700, 350)),
    _warm("own-850", "times 1000, 925, 850, 425", OWN, times=(1000, 925, 850, 425)),
    _warm("own-450", "times 1000, 900, 750, 450", OWN, times=(1000, 900, 750, 450)),
    _warm("own-trajectory", "exact scores of the next state", OWN, "method.tau_noise=trajectory"),
    _warm("teacher-trajectory", "exact scores of the next state, at the teacher's resolution",
          "method.tau_noise=trajectory"),
    _warm("own-dct", "upsampled by the DCT", OWN, "crossing.upsample=dct"),
    _warm("teacher-dct", "upsampled by the DCT, at the teacher's resolution", "crossing.upsample=dct"),
    _warm("own-guidance-4", "guidance 4", OWN, "method.guidance=4"),
    _warm("own-guidance-below", "guidance read at cleaner times", OWN, "method.guidance_tau=below"),
    _warm("own-low-guidance", "guidance 1.5 in the low stage", OWN, _guidance(1.5, 3.0)),
    _warm("own-low-guidance-4", "guidance 1.5 in the low stage, 4 in the full one", OWN, _guidance(1.5, 4.0)),
    _warm("teacher-low-guidance", "guidance 1.5 in the low stage, at the teacher's resolution", _guidance(1.5, 3.0)),
    _warm("own-decay", "learning rates that fall to 0 over 50 iterations", OWN, "optim.lr_decay=50"),
    _warm("own-1+2", "one step at 48 px, two at 64 px", OWN, times=(1000, 750, 375), split=(1, 2), sides=(48, 64)),
    _warm("teacher-1+2", "one step at 48 px, two at 64 px, at the teacher's resolution", times=(1000, 750, 375),
          split=(1, 2), sides=(48, 64)),
    _warm("teacher-1+2+1", "1+2+1 at 32, 48, 64 px, at the teacher's resolution", "crossing.upsample=dct",
          times=(1000, 850, 650, 350), split=(1, 2, 1), sides=(32, 48, 64)),
)  # fmt: skip

SCREENING = Table(
    "screening", "Times, matching and scores of a cascade", "not in the paper",
    "Which times, which resolution of the matching and which scores come near four full-resolution steps?",
    _ROWS, against="own", seeds=2,
)  # fmt: skip
PRESCREENING = Table(
    "prescreening", "The same with the paper's warm-up", "not in the paper",
    "Which rules bring something to a cascade whose first stage is trained alone for a fifth of the run? Rows of other "
    "splits also have other sides.",
    (TDM, *_WARM_ROWS), against="warm-own", seeds=1,
)  # fmt: skip
