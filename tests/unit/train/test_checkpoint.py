"""Checkpoints: everything is restored, only into the same run, and only from a complete checkpoint."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import DEVICE, accelerator
from helpers import assert_same
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, load, save
from toy_checkpoints import IDENTITY, advance, everything, make, meta_of, save_now

from rmd.common.errors import RMDError
from rmd.models.roles import TRAINED
from rmd.train import checkpoint
from rmd.train.checkpoint import Meta, checkpoints, load_checkpoint, set_aside

modes = pytest.mark.parametrize("mode", ["lora", "full"])


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
            checkpoint._fill_optimizer(optimizer, [parameter])
            assert (optimizer.state[parameter]["step"].device == DEVICE) == fused


def test_what_is_not_whole_is_never_listed(tmp_path: Path) -> None:
    trained = make()
    advance(trained)
    whole = save_now(tmp_path, 3, trained)
    for name in (".step-000004.partial", "step-000005", "step-6", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / ".step-000004.partial" / "meta.json").write_text("{}")
    (tmp_path / "step-000007").write_text("a file")
    assert checkpoints(tmp_path) == [whole]


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
