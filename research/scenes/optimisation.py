"""Training loops of the small networks of the scenes: AdamW with a one-cycle learning rate, or Muon with AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor, nn

from research.scenes.checkpoint import Checkpoint
from rmd.models.attention import AttentionInFloat32

Precision = Literal["float32", "bfloat16"]


def train_adamw(
    trained: nn.Module, loss: Callable[[int], Tensor], *, name: str, iterations: int, lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.01, rise: float = 0.1,
    checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print, log_every: int = 100,
) -> float:  # fmt: skip
    """Minimise a loss with AdamW and a one-cycle learning rate; gradients are clipped to a norm of 1.

    Args:
        trained: the module to train.
        loss: returns the loss of a step. It must depend on the step alone, so that a training can be resumed.
        name: name of the training in log messages.
        iterations: number of optimiser steps.
        lr: largest learning rate.
        betas, weight_decay: settings of AdamW.
        rise: fraction of the iterations in which the learning rate rises; it falls in the others.
        checkpoint: file from which an interrupted training resumes; written every `every` iterations.
        log: receives a message every `log_every` iterations.

    Returns:
        Seconds of training, including those before an interruption.
    """
    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, betas=betas, weight_decay=weight_decay)
    rise = max(rise, 1.5 / iterations)  # torch divides by zero for a rise of exactly one step
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=iterations, pct_start=rise)
    state = Checkpoint(checkpoint, every, trained=trained, optimizer=optimizer, schedule=schedule)

    def update(step: int) -> None:
        optimizer.step()
        schedule.step()

    return _minimise(trained, loss, update, state, name=name, iterations=iterations, log=log, log_every=log_every)


def train_muon(
    trained: nn.Module, loss: Callable[[int], Tensor], *, name: str, iterations: int, lr: float, warmup: int = 50,
    decay: float = 0.4, checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
    log_every: int = 100,
) -> float:  # fmt: skip
    """Minimise a loss with `Optimizers`, that is, Muon and AdamW at the same learning rate.

    The other arguments and the result are those of `train_adamw`.

    Args:
        lr: learning rate between warm-up and decay.
        warmup: number of iterations in which the learning rate rises.
        decay: fraction of the iterations, at the end, in which it falls to zero.
    """
    optimizers = Optimizers(trained, lr=lr, matrix_lr=lr)
    state = Checkpoint(checkpoint, every, trained=trained, muon=optimizers.muon, adamw=optimizers.adamw)

    def update(step: int) -> None:
        optimizers.step(min(1.0, (step + 1) / warmup, (iterations - step) / (iterations * decay)))

    return _minimise(trained, loss, update, state, name=name, iterations=iterations, log=log, log_every=log_every)


def _minimise(
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
    """Muon for matrices and convolution kernels, AdamW for all other parameters.

    Muon reaches the loss of AdamW in about two thirds of the iterations on the teachers of the scenes, and in less than
    half on the VAE of clips. It accepts matrices only, so kernels are passed as views (out, in * height * width).
    """

    _elementwise = (
        "embed", "shared", "relative_attention_bias", "conv_in", "conv_out", "proj_out", "scale_shift_table", "gamma",
    )  # fmt: skip
    """Names of embeddings, gains and the first and last layers of networks, for which Muon is not meant."""

    def __init__(self, trained: nn.Module, *, lr: float, matrix_lr: float) -> None:
        """Create both optimisers.

        Args:
            trained: the module to train.
            lr: learning rate of AdamW.
            matrix_lr: learning rate of Muon, scaled to match the size of AdamW's updates.
        """
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        others = []
        for name, parameter in trained.named_parameters():
            if parameter.ndim < 2 or any(part in name for part in self._elementwise):
                others.append(parameter)
            else:
                self._pairs.append((parameter, nn.Parameter(parameter.detach().view(parameter.shape[0], -1))))
        self.muon = Muon([matrix for _, matrix in self._pairs], lr=matrix_lr, weight_decay=0.01)
        self.adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self._rates: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (self.muon, matrix_lr),
            (self.adamw, lr),
        )

    def step(self, factor: float) -> None:
        """Update the parameters from their gradients, with `factor` times the learning rates."""
        for parameter, matrix in self._pairs:
            matrix.grad = None if parameter.grad is None else parameter.grad.view_as(matrix)
        for optimizer, lr in self._rates:
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, which updates all matrices of one shape at once.

    The updates are those of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which takes one matrix after another:
    for the small teachers of the scenes, that costs half as much again as the rest of a step.
    """

    _coefficients = (3.4445, -4.775, 2.0315)
    """Coefficients of the quintic Newton-Schulz iteration that torch.optim.Muon has, too."""

    def __init__(
        self, matrices: Sequence[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        """Create the optimiser of matrices, each of two dimensions."""
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every matrix that has a gradient, and return the result of the closure, which is called first."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for matrices in _by_shape([matrix for matrix in group["params"] if matrix.grad is not None]):
                    self._update(matrices, **{name: group[name] for name in ("lr", "weight_decay", "momentum")})
        return loss

    def _update(self, matrices: list[Tensor], *, lr: float, weight_decay: float, momentum: float) -> None:
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        moments = [self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix)) for matrix in matrices]
        torch._foreach_lerp_(moments, gradients, 1 - momentum)
        ahead = torch.stack(gradients).lerp_(torch.stack(moments), momentum)
        size = 0.2 * math.sqrt(max(matrices[0].shape))
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, list(self._orthogonal(ahead).to(ahead.dtype).unbind()), alpha=-lr * size)

    def _orthogonal(self, matrices: Tensor) -> Tensor:
        """Return matrices (n, a, b) with all singular values moved close to one, in bfloat16."""
        a, b, c = self._coefficients
        upright = matrices.shape[-2] > matrices.shape[-1]
        x = (matrices.mT if upright else matrices).bfloat16()
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if upright else x


def _by_shape(matrices: list[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.shape, []).append(matrix)
    return list(groups.values())


@contextmanager
def reduced(precision: Precision) -> Iterator[None]:
    """Compute the networks' matrix products in this precision, inside a forward pass; parameters stay in float32."""
    if precision == "float32":
        yield
        return
    with torch.autocast("cpu", torch.bfloat16), AttentionInFloat32():
        yield
