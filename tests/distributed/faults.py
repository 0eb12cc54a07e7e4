"""Started by test_train.py in each process: runs `rmd train` with a fault in one of two processes.

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
from rmd.train import run
from rmd.train.checkpoint import Meta, Trained
from rmd.train.loop import Trainer
from rmd.train.tracking import LocalFiles
from rmd.train.writer import CheckpointWriter

AT = 1
"""The iteration, from 0, in which it happens."""


def nan_loss() -> None:
    """Make a loss NaN in the second process; a process that steps an optimiser afterwards prints so."""
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
    """Send SIGTERM to the second process."""
    usual = Trainer.iterate

    def iterate(self: Trainer, iteration: int) -> Any:
        if iteration == AT and self.parallel.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, iteration)

    mock.patch.object(Trainer, "iterate", iterate).start()


def full_disk() -> None:
    """Limit the second process to files of 2,000 bytes from the second checkpoint on; the first one is complete."""
    usual = CheckpointWriter.save

    def save(self: CheckpointWriter, trained: Trained, meta: Meta) -> Any:
        if meta.iteration > AT and self.parallel.rank == 1:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        return usual(self, trained, meta)

    mock.patch.object(CheckpointWriter, "save", save).start()


def full_metrics() -> None:
    """Leave the first process, which alone writes metrics, no room for those of an iteration."""
    usual = LocalFiles.log_metrics

    def log_metrics(self: LocalFiles, iteration: int, values: Any) -> None:
        if iteration > AT:
            self.path.unlink()
            self.path.symlink_to("/dev/full")
        usual(self, iteration, values)

    mock.patch.object(LocalFiles, "log_metrics", log_metrics).start()


def other_prompts() -> None:
    """Let the second process read other prompts than the first, as from a file on its own machine."""
    usual = run.load_prompts

    def load(*arguments: Any, **options: Any) -> Prompts:
        prompts = usual(*arguments, **options)
        return Prompts(prompts.texts[1:], prompts.seed) if os.environ["RANK"] == "1" else prompts

    mock.patch.object(run, "load_prompts", load).start()


if __name__ == "__main__":
    {"nan": nan_loss, "sigterm": pre_emption, "disk": full_disk, "metrics": full_metrics, "prompts": other_prompts}[
        sys.argv[1]
    ]()
    sys.exit(main(sys.argv[2:]))
