"""How the scenes' small networks are trained: AdamW under one cycle of the learning rate, or Muon with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from research.scenes.checkpoint import Checkpoint


def fit(
    trained: nn.Module, loss: Callable[[int], Tensor], *, name: str, iterations: int, lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.01, rise: float = 0.1,
    checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print, log_every: int = 100,
) -> float:  # fmt: skip
    """Descend `loss`, a function of the step alone; gradients are clipped at a norm of 1.

    Args:
        trained: what is trained and kept.
        name: of the lines that are logged.
        rise: share of the iterations in which the learning rate rises to `lr`; it falls in the others.
        checkpoint: file that a killed run goes on from, kept after every `every` iterations.

    Returns:
        Seconds the training took, those before a kill included.
    """
    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, betas=betas, weight_decay=weight_decay)
    rise = max(rise, 1.5 / iterations)  # a rise of exactly one step would divide by zero in torch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=iterations, pct_start=rise)
    state = Checkpoint(checkpoint, every, trained=trained, optimizer=optimizer, schedule=schedule)

    def update(step: int) -> None:
        optimizer.step()
        schedule.step()

    return _descend(trained, loss, update, state, name=name, iterations=iterations, log=log, log_every=log_every)


def fit_matrices(
    trained: nn.Module, loss: Callable[[int], Tensor], *, name: str, iterations: int, lr: float, warmup: int = 50,
    decay: float = 0.4, checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
    log_every: int = 100,
) -> float:  # fmt: skip
    """As `fit`, by `Optimizers` at one rate, which stays at `lr` between a rise and a fall to zero.

    Args:
        warmup: iterations in which the rate rises.
        decay: share of the iterations, the last ones, in which it falls.
    """
    optimizers = Optimizers(trained, lr=lr, matrix_lr=lr)
    state = Checkpoint(checkpoint, every, trained=trained, muon=optimizers.muon, adamw=optimizers.adamw)

    def update(step: int) -> None:
        optimizers.step(min(1.0, (step + 1) / warmup, (iterations - step) / (iterations * decay)))

    return _descend(trained, loss, update, state, name=name, iterations=iterations, log=log, log_every=log_every)


def _descend(
    trained: nn.Module, loss: Callable[[int], Tensor], update: Callable[[int], None], state: Checkpoint, *, name: str,
    iterations: int, log: Callable[[str], None], log_every: int,
) -> float:  # fmt: skip
    for step in range(state.restore(), iterations):
        value = loss(step)
        trained.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        update(step)
        if step % log_every == 0 or step == iterations - 1:
            log(f"{name} step {step}/{iterations} loss {value.item():.4f} {state.seconds:.0f}s")
        state.after(step + 1)
    return state.seconds


class Optimizers:
    """Muon for matrices and convolution kernels, AdamW for all else.

    On the scenes' teachers Muon reaches AdamW's loss in about two thirds of the iterations, on the clips' VAE in less
    than half. It takes matrices only, so it is given kernels as views of (out, in * height * width).
    """

    _elementwise = (
        "embed", "shared", "relative_attention_bias", "conv_in", "conv_out", "proj_out", "scale_shift_table", "gamma",
    )  # fmt: skip
    """Names of tables, gains, and layers next to the network's inputs and outputs, where Muon does not apply."""

    def __init__(self, trained: nn.Module, *, lr: float, matrix_lr: float) -> None:
        """Take hold of what is trained.

        Args:
            lr: of AdamW.
            matrix_lr: of Muon, scaled to match the size of AdamW's updates.
        """
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        others = []
        for name, parameter in trained.named_parameters():
            if parameter.ndim < 2 or any(part in name for part in self._elementwise):
                others.append(parameter)
            else:
                self._pairs.append((parameter, nn.Parameter(parameter.detach().view(parameter.shape[0], -1))))
        self.muon = torch.optim.Muon(
            [matrix for _, matrix in self._pairs],
            lr=matrix_lr,
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
        self._rates: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (self.muon, matrix_lr),
            (self.adamw, lr),
        )

    def step(self, factor: float) -> None:
        """One update with `factor` times the learning rates, from the gradients of the trained parameters."""
        for parameter, matrix in self._pairs:
            matrix.grad = None if parameter.grad is None else parameter.grad.view_as(matrix)
        for optimizer, lr in self._rates:
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
