"""What test_train.py starts in each process: `rmd train` with something going wrong in the second process.

torchrun --nproc-per-node 2 faults.py FAULT ARGUMENTS...
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any
from unittest import mock

import torch

from rmd.cli.app import main
from rmd.data.prompts import Prompts
from rmd.train import loop
from rmd.train.checkpoint import CheckpointWriter, Meta, Trained
from rmd.train.loop import Trainer
from rmd.train.tracking import Tracker

AT = 3
"""The iteration, from 0, that it happens in."""


def nan_loss() -> None:
    """A loss that is not a number; whoever steps an optimiser afterwards says so."""
    usual, step = Trainer.iterate, torch.optim.AdamW.step
    happened = []

    def stepped(self: Any, *arguments: Any) -> Any:
        if happened:
            print("an optimiser stepped")
        return step(self, *arguments)

    def iterate(self: Trainer, iteration: int) -> Any:
        if iteration == AT:
            happened.append(iteration)
            if self.parallel.rank == 1:
                loss = self.method.student_loss

                def broken(*arguments: Any) -> Any:
                    value, rollout = loss(*arguments)
                    return value * float("nan"), rollout

                mock.patch.object(self.method, "student_loss", broken).start()
        return usual(self, iteration)

    mock.patch.object(torch.optim.AdamW, "step", stepped).start()
    mock.patch.object(Trainer, "iterate", iterate).start()


def pre_emption() -> None:
    """SIGTERM to one process."""
    usual = Trainer.iterate

    def iterate(self: Trainer, iteration: int) -> Any:
        if iteration == AT and self.parallel.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, iteration)

    mock.patch.object(Trainer, "iterate", iterate).start()


def full_disk() -> None:
    """No file of more than 2,000 bytes can be written from the second checkpoint on; the first lies there whole."""
    usual = CheckpointWriter.save

    def save(self: CheckpointWriter, trained: Trained, meta: Meta) -> Any:
        if meta.iteration > AT and self.parallel.rank == 1:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        return usual(self, trained, meta)

    mock.patch.object(CheckpointWriter, "save", save).start()


def full_metrics() -> None:
    """The first process, which alone writes metrics, has no room for those of an iteration."""
    usual = Tracker.metrics

    def metrics(self: Tracker, iteration: int, values: Any) -> None:
        if iteration > AT:
            self.path.unlink()
            self.path.symlink_to("/dev/full")
        usual(self, iteration, values)

    mock.patch.object(Tracker, "metrics", metrics).start()


def other_prompts() -> None:
    """The second process reads other prompts than the first, as from a file of its own machine."""
    usual = loop.load_prompts

    def load(*arguments: Any, **options: Any) -> Prompts:
        found = usual(*arguments, **options)
        return Prompts(found.texts[1:], found.seed) if os.environ["RANK"] == "1" else found

    mock.patch.object(loop, "load_prompts", load).start()


if __name__ == "__main__":
    {"nan": nan_loss, "sigterm": pre_emption, "disk": full_disk, "metrics": full_metrics, "prompts": other_prompts}[
        sys.argv[1]
    ]()
    sys.exit(main(sys.argv[2:]))
