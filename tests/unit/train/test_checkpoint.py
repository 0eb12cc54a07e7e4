"""Checkpoints: complete or absent, of the same run, and pruned only after the next one is safe."""

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

from rmd.common.errors import RMDError
from rmd.models.roles import TRAINED, build_roles
from rmd.train import checkpoint as module
from rmd.train import writer as writer_module
from rmd.train.checkpoint import Meta, Trained, checkpoints, load_checkpoint, set_aside
from rmd.train.guard import GuardState
from rmd.train.identity import Identity
from rmd.train.writer import CheckpointWriter

IDENTITY = Identity(run_hash="abc", prompts=4, prompts_key="p", teacher_key="t", images_key=None)
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


def meta_of(iteration: int, **changes: Any) -> Meta:
    guard = GuardState(series={}, best=0.0, low=[])
    known: dict[str, Any] = {"recipe": "tiny", "identity": IDENTITY, "plan": {}, "guard": guard, "best": None}
    return Meta(iteration=iteration, **(known | changes))


def save_now(folder: Path, iteration: int, trained: Trained, keep: int = 2, keep_every: int | None = None) -> Path:
    writer = CheckpointWriter(folder, keep_last=keep, keep_every=keep_every)
    path = writer.save(trained, meta_of(iteration))
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
    assert load_checkpoint(path, target, identity=IDENTITY).iteration == 7
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
    load_checkpoint(save_now(tmp_path, 7, source), target, identity=IDENTITY)
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
    load_checkpoint(path, target, identity=IDENTITY)
    assert_same(everything(target), everything(trained))
    assert checkpoints(tmp_path) == [path]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file: No space left on device"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
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

    monkeypatch.setattr(writer_module, "save", fail)
    advance(trained, seed=1)
    with pytest.raises(RMDError, match=f"^cannot save .*step-000003: {why}; earlier checkpoints are intact"):
        save_now(tmp_path, 3, trained)
    assert checkpoints(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == sorted(before)
    target = make()
    assert load_checkpoint(before[-1], target, identity=IDENTITY).iteration == 2
    assert_same(everything(target), kept)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RMDError, match=r"^cannot save .*step-000001"):
        save_now(tmp_path / "run", 1, make())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"run_hash": "other"},
            "was made with another recipe: resume with the settings of that recipe, add --reset-optimizer",
        ),
        (
            {"prompts_key": "q", "prompts": 1200},
            r"was made with other prompts \(4 then, 1,200 now\): resume with the same",
        ),
        (
            {"prompts_key": "q"},
            r"was made with other prompts \(4 then, 4 now\): resume with the same prompts, add --reset",
        ),
        (
            {"teacher_key": "u"},
            "was made with another teacher, which has other weights: resume with the same teacher, add --reset",
        ),
        (
            {"images_key": "i"},
            "was made with other images: resume with the same images, add --reset-optimizer to continue",
        ),
    ],
)
def test_another_run_is_refused_by_what_differs_unless_the_optimisers_are_reset(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    trained = make()
    advance(trained)
    path, target = save_now(tmp_path, 1, trained), make()
    before, other = everything(target), IDENTITY.model_copy(update=changes)
    with pytest.raises(RMDError, match=f"^the checkpoint {path} {sentence}.* or choose another --out$"):
        load_checkpoint(path, target, identity=other)
    assert_same(everything(target), before)
    assert load_checkpoint(path, target, identity=other, reset_optimizers=True).iteration == 1
    assert_same(target.roles.state("student"), trained.roles.state("student"))


def test_a_checkpoint_of_the_first_version_is_compared_by_its_own_hash(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path, target = save_now(tmp_path, 1, trained), make()
    earlier = json.loads(meta_of(1, run_hash="of 0.1").model_dump_json(exclude={"version", "identity"}))
    (path / "meta.json").write_text(json.dumps(earlier))
    with pytest.warns(UserWarning, match=r"by RMD 0\.1, which did not record the contents of prompts and teacher"):
        assert load_checkpoint(path, target, identity=IDENTITY, earlier_hash="of 0.1").iteration == 1
    assert_same(everything(target), everything(trained))
    for hash_now in ("another", None):
        with pytest.raises(RMDError, match="was made with another recipe"):
            load_checkpoint(path, make(), identity=IDENTITY, earlier_hash=hash_now)
    del earlier["run_hash"]
    (path / "meta.json").write_text(json.dumps(earlier))
    with pytest.raises(RMDError, match="was made with another recipe"):
        load_checkpoint(path, make(), identity=IDENTITY, earlier_hash=None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"iteration": "7"}, "iteration should be a whole number, but is '7'"),
        ({"itration": 7}, r"there is no key itration \(did you mean 'iteration'\?\)"),
        ({"best": {"iteration": 1, "right": float("nan")}}, "is not valid JSON"),
        ({"guard": {"series": {}, "best": 0.0, "low": [], "more": 1}}, r"there is no key guard\.more"),
        ({"version": 2}, "has version 2, but this RMD reads version 1: update RMD to read it"),
    ],
)
def test_what_a_checkpoint_says_is_read_strictly(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path = save_now(tmp_path, 1, trained) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RMDError, match=f"^{path}:? {sentence}"):
        load_checkpoint(path.parent, make(), identity=IDENTITY, reset_optimizers=True)


def edit(path: Path, *dropped: str) -> None:
    """Rewrite a checkpoint without the tensors whose names start with one of the given prefixes."""
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
        load_checkpoint(path, make(), identity=IDENTITY)


def test_the_state_of_a_single_parameter_may_not_be_missing_either(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path = save_now(tmp_path, 1, trained)
    edit(path, "optimizer-fake/to_q.lora_A.weight/exp_avg_sq")
    with pytest.raises(RMDError, match=r"lacks the optimiser's state of to_q\.lora_A\.weight"):
        load_checkpoint(path, make(), identity=IDENTITY)


def test_optimisers_that_never_stepped_are_no_state(tmp_path: Path) -> None:
    path = save_now(tmp_path, 1, make())
    with pytest.raises(RMDError, match="has no optimizer-student state"):
        load_checkpoint(path, make(), identity=IDENTITY)


def test_another_rank_is_refused(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path = save_now(tmp_path, 1, trained)
    with pytest.raises(RMDError, match="another network or another LoRA rank"):
        load_checkpoint(path, make(rank=3), identity=IDENTITY)


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
        load_checkpoint(path, make(), identity=IDENTITY)


def test_meta_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    path = save_now(tmp_path, 4, trained)
    assert Meta.model_validate_json((path / "meta.json").read_bytes()) == meta_of(4)
    assert load_checkpoint(path, make(), identity=IDENTITY) == meta_of(4)


def test_a_kill_while_a_checkpoint_is_removed_leaves_none_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make()
    advance(trained)
    save_now(tmp_path, 1, trained)
    monkeypatch.setattr(module.shutil, "rmtree", lambda path, ignore_errors: None)  # killed before anything is gone
    for iteration in (2, 3):
        save_now(tmp_path, iteration, trained, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003"]
    monkeypatch.undo()
    save_now(tmp_path, 4, trained, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the state at the time of saving, whatever the training does meanwhile."""
    trained, target = make("full"), make("full")
    advance(trained)
    kept, go_on = everything(trained), threading.Event()
    real = writer_module.save

    def slow(*arguments: Any, **options: Any) -> Any:
        assert go_on.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr(writer_module, "save", slow)
    writer = CheckpointWriter(tmp_path, keep_last=2)
    path = writer.save(trained, meta_of(1))
    advance(trained, seed=1)
    assert checkpoints(tmp_path) == []
    go_on.set()
    writer.close()
    load_checkpoint(path, target, identity=IDENTITY)
    assert_same(everything(target), kept)


def test_the_last_good_checkpoint_outlives_those_that_look_bad(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    writer = CheckpointWriter(tmp_path, keep_last=1)
    for iteration in range(1, 6):
        writer.good_until = 4 if iteration > 3 else None
        writer.save(trained, meta_of(iteration))
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
    assert load_checkpoint(path, target, identity=IDENTITY, reset_optimizers=True).iteration == 5
    for role in TRAINED:
        assert_same(target.roles.state(role), source.roles.state(role))
        assert not target.optimizers[role].state
    assert_same(target.average, source.average)


def test_state_of_something_else_is_refused(tmp_path: Path) -> None:
    source = make(average=True)
    advance(source)
    path = save_now(tmp_path, 1, source)
    with pytest.raises(RMDError, match=r"holds average/.*, which this run does not have"):
        load_checkpoint(path, make(average=False), identity=IDENTITY)
