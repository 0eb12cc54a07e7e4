"""How the scenes' small networks, VAEs and judges, are trained: AdamW under one cycle of the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rmd.scenes.checkpoint import Checkpoint


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
    for step in range(state.restore(), iterations):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % log_every == 0 or step == iterations - 1:
            log(f"{name} step {step}/{iterations} loss {value.item():.4f} {state.seconds:.0f}s")
        state.after(step + 1)
    return state.seconds
