"""Checkpoints: whole or not there, complete, of the same run, and pruned only after the next one is safe."""

from __future__ import annotations

import errno
import json
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import DEVICE, accelerator
from helpers import LinearBackbone, Mixer, assert_same
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, load, save

from rmd.errors import RMDError
from rmd.roles import TRAINED, build_roles
from rmd.train import checkpoint as module
from rmd.train.checkpoint import CheckpointWriter, Trained, checkpoints, load_checkpoint, set_aside

HASH = "abc"
modes = pytest.mark.parametrize("mode", ["lora", "full"])


def make(mode: Any = "lora", *, average: bool = True, rank: int = 2, fused: bool = False) -> Trained:
    roles = build_roles(Mixer(), mode=mode, targets=LinearBackbone.lora_targets, rank=rank, alpha=2.0)
    optimizers: dict[str, torch.optim.Optimizer] = {
        role: torch.optim.AdamW(roles.trainable(role), lr=0.1, fused=fused) for role in TRAINED
    }
    kept = {name: value.clone() for name, value in roles.state("student").items()} if average else {}
    return Trained(roles, optimizers, kept)


def advance(trained: Trained, *, seed: int = 0) -> None:
    """One update of everything that a checkpoint holds."""
    g = torch.Generator().manual_seed(seed)
    for role in TRAINED:
        for parameter in trained.roles.trainable(role):
            parameter.grad = torch.randn(parameter.shape, generator=g)
        trained.optimizers[role].step()
    for name, value in trained.average.items():
        value.lerp_(trained.roles.state("student")[name], 0.5)


def everything(trained: Trained) -> dict[str, Tensor]:
    found = {f"average/{name}": value.clone() for name, value in trained.average.items()}
    for role in TRAINED:
        found |= {f"{role}/{name}": value.clone() for name, value in trained.roles.state(role).items()}
        for i, state in enumerate(trained.optimizers[role].state.values()):
            found |= {f"{role}/{i}/{key}": torch.as_tensor(value).clone() for key, value in state.items()}
    return found


def save_now(folder: Path, iteration: int, trained: Trained, keep: int = 2, keep_every: int | None = None) -> Path:
    writer = CheckpointWriter(folder, keep_last=keep, keep_every=keep_every)
    path = writer.save(iteration, trained, {"run_hash": HASH})
    writer.close()
    return path


@modes
@pytest.mark.parametrize("average", [True, False])
def test_everything_comes_back(mode: str, average: bool, tmp_path: Path) -> None:
    source, target = make(mode, average=average), make(mode, average=average)
    advance(source)
    path = save_now(tmp_path, 7, source)
    assert path == tmp_path / "step-000007"
    assert sorted(entry.name for entry in path.iterdir()) == [".metadata", "__0_0.distcp", "meta.json"]
    assert load_checkpoint(path, target, run_hash=HASH)[0] == 7
    assert_same(everything(target), everything(source))
    assert len(everything(source)) == len(source.roles.state("student")) * (8 + average)
    advance(source, seed=1)
    assert not torch.equal(source.roles.trainable("fake")[0], target.roles.trainable("fake")[0])
    advance(target, seed=1)  # the restored optimisers step the restored parameters
    assert_same(everything(target), everything(source))


@pytest.mark.parametrize("fused", [True, False])
def test_a_gpus_run_goes_on_without_one_and_the_other_way_round(fused: bool, tmp_path: Path) -> None:
    source, target = make(fused=fused), make(fused=not fused)
    advance(source)
    load_checkpoint(save_now(tmp_path, 7, source), target, run_hash=HASH)
    assert_same(everything(target), everything(source))
    advance(source, seed=1)
    advance(target, seed=1)
    for name, value in everything(source).items():
        torch.testing.assert_close(everything(target)[name], value, rtol=0, atol=1e-6)


def test_a_fused_optimiser_counts_its_steps_where_the_parameters_are() -> None:
    with accelerator():
        parameter = nn.Parameter(torch.zeros(3, device=DEVICE))
        for fused in (True, False):
            optimizer = torch.optim.AdamW([parameter], fused=fused)
            module._fill_optimizer(optimizer, [parameter])
            assert (optimizer.state[parameter]["step"].device == DEVICE) == fused


def test_checkpoints_are_listed_in_order_and_the_newest_are_kept(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    assert checkpoints(tmp_path / "none") == []
    for iteration in (5, 900_000, 1_000_000):
        save_now(tmp_path, iteration, trained)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-900000", "step-1000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-900000"]


def test_what_is_not_whole_is_never_listed(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    whole = save_now(tmp_path, 3, trained)
    for name in (".step-000004.partial", "step-000005", "step-6", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / ".step-000004.partial" / "meta.json").write_text("{}")
    (tmp_path / "step-000007").write_text("a file")
    assert checkpoints(tmp_path) == [whole]


def test_the_next_save_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    left = tmp_path / ".step-000004.partial"
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half")
    save_now(tmp_path, 6, trained)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000006"]


def test_saving_the_same_iteration_again_replaces_it(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    save_now(tmp_path, 3, trained)
    advance(trained, seed=2)
    path, target = save_now(tmp_path, 3, trained), make()
    load_checkpoint(path, target, run_hash=HASH)
    assert_same(everything(target), everything(trained))
    assert checkpoints(tmp_path) == [path]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file: No space left on device"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), r"\[Errno 13\] Permission denied"),
    ],
)
def test_a_save_that_fails_leaves_the_earlier_ones_alone(
    error: Exception, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make()
    advance(trained)
    before = [save_now(tmp_path, 1, trained), save_now(tmp_path, 2, trained)]
    kept = everything(trained)

    def fail(tensors: object, *, checkpoint_id: Path, **options: object) -> None:
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(module, "save", fail)
    advance(trained, seed=1)
    with pytest.raises(RMDError, match=f"^cannot save .*step-000003: {why}; earlier checkpoints are intact"):
        save_now(tmp_path, 3, trained)
    assert checkpoints(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == sorted(before)
    target = make()
    assert load_checkpoint(before[-1], target, run_hash=HASH)[0] == 2
    assert_same(everything(target), kept)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RMDError, match=r"^cannot save .*step-000001"):
        save_now(tmp_path / "run", 1, make())


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path, target = save_now(tmp_path, 1, trained), make()
    before = everything(target)
    with pytest.raises(RMDError, match=r"is of another recipe: resume with the settings .* or choose another --out$"):
        load_checkpoint(path, target, run_hash="other")
    assert_same(everything(target), before)


def edit(path: Path, *dropped: str) -> None:
    """Rewrite a checkpoint without the tensors whose names start so."""
    held = FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size) for name, entry in held.items() if not name.startswith(dropped)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected an existing checkpoint|torch.distributed is disabled")
        load(tensors, checkpoint_id=path, no_dist=True)
        save(tensors, checkpoint_id=path, no_dist=True)


@pytest.mark.parametrize("group", ["student", "fake", "average", "optimizer-student", "optimizer-fake"])
def test_missing_state_is_refused(group: str, tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path = save_now(tmp_path, 1, trained)
    edit(path, f"{group}/")
    with pytest.raises(RMDError, match=f"has no {group} state: it cannot continue the same run"):
        load_checkpoint(path, make(), run_hash=HASH)


def test_the_state_of_a_single_parameter_may_not_be_missing_either(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path = save_now(tmp_path, 1, trained)
    edit(path, "optimizer-fake/to_q.lora_A.weight/exp_avg_sq")
    with pytest.raises(RMDError, match=r"lacks the optimiser's state of to_q\.lora_A\.weight"):
        load_checkpoint(path, make(), run_hash=HASH)


def test_optimisers_that_never_stepped_are_no_state(tmp_path: Path) -> None:
    path = save_now(tmp_path, 1, make())
    with pytest.raises(RMDError, match="has no optimizer-student state"):
        load_checkpoint(path, make(), run_hash=HASH)


def test_another_rank_is_refused(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path = save_now(tmp_path, 1, trained)
    with pytest.raises(RMDError, match="another network or another LoRA rank"):
        load_checkpoint(path, make(rank=3), run_hash=HASH)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_damage_is_told(name: str, damage: str, tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path = save_now(tmp_path, 1, trained)
    file = path / name
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(RMDError, match="is damaged: remove it to resume from the one before"):
        load_checkpoint(path, make(), run_hash=HASH)


def test_meta_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    writer = CheckpointWriter(tmp_path, keep_last=1)
    path = writer.save(4, trained, {"run_hash": HASH, "recipe": "tiny"})
    writer.close()
    meta = json.loads((path / "meta.json").read_text())
    assert meta == {"iteration": 4, "run_hash": HASH, "recipe": "tiny"}


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is what there was, whatever the training does meanwhile."""
    trained, target = make("full"), make("full")
    advance(trained)
    kept, go_on = everything(trained), threading.Event()
    real = module.save

    def slow(*arguments: Any, **options: Any) -> Any:
        assert go_on.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr(module, "save", slow)
    writer = CheckpointWriter(tmp_path, keep_last=2)
    path = writer.save(1, trained, {"run_hash": HASH})
    advance(trained, seed=1)
    assert checkpoints(tmp_path) == []
    go_on.set()
    writer.close()
    load_checkpoint(path, target, run_hash=HASH)
    assert_same(everything(target), kept)


def test_the_last_good_checkpoint_outlives_those_that_look_bad(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    writer = CheckpointWriter(tmp_path, keep_last=1)
    for iteration in range(1, 6):
        writer.good_until = 4 if iteration > 3 else None
        writer.save(iteration, trained, {"run_hash": HASH})
    writer.close()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003", "step-000005"]


def test_what_is_set_aside_is_no_checkpoint_any_more(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    for iteration in (1, 2, 3):
        save_now(tmp_path, iteration, trained, keep=3)
    set_aside(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001"]
    assert sorted(path.name for path in tmp_path.glob("collapsed-*")) == [
        "collapsed-step-000002", "collapsed-step-000003"
    ]  # fmt: skip


def test_milestones_are_kept_for_good(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    for iteration in range(1, 8):
        save_now(tmp_path, iteration, trained, keep=2, keep_every=3)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-00000{i}" for i in (3, 6, 7)]


def test_weights_alone_come_back_where_the_optimisers_are_reset(tmp_path: Path) -> None:
    source, target = make(), make()
    advance(source)
    path = save_now(tmp_path, 5, source)
    edit(path, "optimizer-fake/")  # none is asked for
    assert load_checkpoint(path, target, run_hash="of another recipe", reset_optimizers=True)[0] == 5
    for role in TRAINED:
        assert_same(target.roles.state(role), source.roles.state(role))
        assert not target.optimizers[role].state
    assert_same(target.average, source.average)


def test_state_of_something_else_is_refused(tmp_path: Path) -> None:
    source = make(average=True)
    advance(source)
    path = save_now(tmp_path, 1, source)
    with pytest.raises(RMDError, match=r"holds average/.*, which this run does not have"):
        load_checkpoint(path, make(average=False), run_hash=HASH)
