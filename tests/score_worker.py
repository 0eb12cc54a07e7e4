"""Runs `rmd` with some arguments, and kills the process itself when the n-th batch of a metric should be scored.

Usage: score_worker.py N ARGUMENTS
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image
from torch import Tensor

from rmd.cli.app import main
from rmd.scores.metrics import METRICS, Place, Scorer


def dying(load: Callable[[Place], Scorer], last: int) -> Callable[[Place], Scorer]:
    """Return a loader of a scorer that is killed before it scores batch `last`."""

    def loaded(place: Place) -> Scorer:
        scorer, batches = load(place), 0

        class Dying:
            preparation = scorer.preparation

            def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
                nonlocal batches
                batches += 1
                if batches == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return scorer(images, prompts)

        return Dying()

    return loaded


for name, metric in METRICS.items():
    METRICS[name] = replace(metric, load=dying(metric.load, int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
