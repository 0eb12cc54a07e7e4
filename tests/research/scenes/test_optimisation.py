"""The optimisers: which one updates which parameters, and that a resumed training gives the same result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import assert_same
from torch import Tensor, nn

from research.scenes.optimisation import Muon, Optimizers, reduced, train_muon


def test_muon_updates_matrices_and_adamw_everything_else() -> None:
    layers: dict[str, nn.Module] = {
        "inner": nn.Linear(6, 4),
        "kernel": nn.Conv2d(3, 4, 3),
        "conv_in": nn.Conv2d(3, 4, 3),
        "embed": nn.Embedding(5, 4),
    }
    trained = nn.ModuleDict(layers)
    optimizers = Optimizers(trained, lr=1e-3, matrix_lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    for parameter in trained.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    optimizers.step(0.5)
    moved = {name: parameter.detach() - before[name] for name, parameter in trained.named_parameters()}
    for name in (
        "inner.bias",
        "kernel.bias",
        "conv_in.weight",
        "embed.weight",
    ):  # AdamW starts with lr sign(grad)
        assert float(moved[name].abs().max()) == pytest.approx(0.5 * 1e-3, rel=0.2)
        assert float(moved[name].abs().min()) == pytest.approx(0.5 * 1e-3, rel=0.2)
    for name in ("inner.weight", "kernel.weight"):  # that of Muon is nearly orthogonal and as large (0.2 lr on average)
        update = moved[name].flatten(1)
        assert float(update.square().mean().sqrt()) == pytest.approx(0.2 * 0.5 * 1e-2, rel=0.25)
        values = torch.linalg.svdvals(update)
        assert float(values.max() / values.min()) < 2.0


def test_muon_makes_the_updates_of_torch() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (6, 4), (3, 8), (4, 6), (6, 4)]
    ours, theirs = (
        [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(7))) for shape in shapes]
        for _ in range(2)
    )
    optimizer = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(mine.shape, generator=g)
            mine.grad, other.grad = (None, None) if step == index else (gradient, gradient.clone())
        optimizer.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):  # both iterate in bfloat16, whose rounding is 1/256 at most
        torch.testing.assert_close(mine, other, rtol=0, atol=4 * 0.02 * 0.2 * 8**0.5 / 64)


def test_a_reduced_precision_is_that_of_matrix_products_alone() -> None:
    x, layer = torch.randn(2, 3), nn.Linear(3, 4)
    assert layer(x).dtype == torch.float32
    with reduced("bfloat16"):
        assert layer(x).dtype == torch.bfloat16
    with reduced("float32"):
        assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def regression(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(64, 4, generator=g)
    return network, x, x @ torch.randn(4, 2, generator=g)


def losses_of(
    network: nn.Module, x: Tensor, y: Tensor, *, iterations: int, checkpoint: Path | None = None
) -> list[float]:
    seen = []

    def loss(step: int) -> Tensor:
        if checkpoint is not None and step == iterations // 2 + 1 and not checkpoint.with_suffix(".killed").exists():
            checkpoint.with_suffix(".killed").touch()
            raise KeyboardInterrupt
        value = (network(x) - y).square().mean()
        seen.append(value.item())
        return value

    train_muon(
        network, loss, name="it", iterations=iterations, lr=0.02, warmup=5, checkpoint=checkpoint,
        every=iterations // 2, log=lambda line: None,
    )  # fmt: skip
    return seen


def test_muon_lowers_the_loss_and_ends_with_a_rate_of_zero() -> None:
    network, x, y = regression()
    seen = losses_of(network, x, y, iterations=200)
    assert seen[-1] < 0.05 * seen[0]
    assert abs(seen[-1] - seen[-2]) < 0.01 * seen[-1]


def test_an_interrupted_training_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    whole, x, y = regression()
    losses_of(whole, x, y, iterations=20)
    checkpoint = tmp_path / "it.pt"
    killed, again = regression()[0], regression(seed=1)[0]
    with pytest.raises(KeyboardInterrupt):
        losses_of(killed, x, y, iterations=20, checkpoint=checkpoint)
    assert len(losses_of(again, x, y, iterations=20, checkpoint=checkpoint)) == 10
    assert_same(again.state_dict(), whole.state_dict())
