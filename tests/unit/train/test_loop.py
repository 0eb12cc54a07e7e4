"""The training loop: exact resume after any kind of end, no update from a bad loss, callbacks, and files."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY, recipe_of
from helpers import LinearBackbone, assert_same, make_recipe, tiny_sdxl, write_prompts
from processes import start
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.models import Backbone
from rmd.models.roles import TRAINED
from rmd.recipes.schema import Recipe, load_recipe, to_yaml
from rmd.train import callbacks
from rmd.train.callbacks import Callback, Iteration
from rmd.train.checkpoint import checkpoints
from rmd.train.guard import Best
from rmd.train.loop import Trainer, lr_scale
from rmd.train.run import PANEL_PROMPTS, Run, build_run
from rmd.train.tracking import MACHINE, read_metrics

ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
modes = pytest.mark.parametrize("mode", ["lora", "full"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


def toy(recipe: Recipe, folder: Path, backbone: Backbone | None = None) -> Trainer:
    return Trainer(recipe, LinearBackbone(**ZERO_SNR) if backbone is None else backbone, folder)


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Return weights, average and optimiser states by name."""
    found = {f"average/{name}": value.clone() for name, value in trainer.trained.average.items()}
    for role in TRAINED:
        found |= {f"{role}/{name}": value.clone() for name, value in trainer.roles.state(role).items()}
        optimizer = trainer.trained.optimizers[role]
        for name, parameter in trainer.roles.named_trainable(role).items():
            for key, value in optimizer.state[parameter].items():
                found[f"{role}/{name}/{key}"] = torch.as_tensor(value).clone()
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return the run's records without the machine-dependent metrics."""
    return [of_the_run(row) for row in read_metrics(folder / "metrics.jsonl")]


def of_the_run(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in MACHINE}


class Crash(Exception):
    """Stands for anything that ends a process between two iterations."""


def crash_at(iteration: int) -> Callable[[int, dict[str, float]], None]:
    def check(done: int, values: dict[str, float]) -> None:
        if done == iteration:
            raise Crash

    return check


@modes
@pytest.mark.parametrize("family", sorted(TINY))
def test_recomputed_activations_change_no_number(family: str, mode: str, prompts: Path, tmp_path: Path) -> None:
    found = []
    for gradient_checkpointing in (False, True):
        recipe = recipe_of(
            family, tmp_path, mode, train={"gradient_checkpointing": gradient_checkpointing, "iterations": 2}
        )
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"prompts": str(prompts)})})
        trainer = toy(recipe, tmp_path / str(gradient_checkpointing), TINY[family]())
        values = [of_the_run(trainer.iterate(iteration)[0]) for iteration in range(2)]
        found.append((values, everything(trainer), trainer.identity))
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2]
    assert_same(found[0][1], found[1][1])


def test_recomputing_spares_memory_and_a_network_that_cannot_is_told(prompts: Path, tmp_path: Path) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    for gradient_checkpointing in (False, True):
        kept.append(0)
        recipe = make_recipe(prompts, "full", train={"gradient_checkpointing": gradient_checkpointing})
        trainer = toy(recipe, tmp_path / "run", tiny_sdxl())
        (batch,) = trainer.batches(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            trainer.method.student_loss(batch, trainer.plan.steps[-1])
    assert kept[1] < 0.5 * kept[0]
    with pytest.raises(
        RMDError,
        match=r"network cannot recompute its activations: set train\.gradient_checkpointing to false$",
    ):
        toy(make_recipe(prompts, "full", train={"gradient_checkpointing": True}), tmp_path / "run")


def test_learning_rates_rise_hold_and_fall(prompts: Path, tmp_path: Path) -> None:
    optim = {"student_lr": 1e-2, "fake_lr": 3e-2, "lr_warmup": 2, "lr_decay": 3}
    recipe = make_recipe(prompts, "full", train={"iterations": 8}, optim=optim)
    trainer = toy(recipe, tmp_path / "run")
    found: dict[str, list[float]] = {role: [] for role in TRAINED}
    for iteration in range(8):
        trainer.iterate(iteration)
        for role in TRAINED:
            found[role].append(trainer.trained.optimizers[role].param_groups[0]["lr"])
    scales = [1 / 3, 2 / 3, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]
    assert found["student"] == pytest.approx([1e-2 * scale for scale in scales])
    assert found["fake"] == pytest.approx([3e-2 * scale for scale in scales])


@pytest.mark.parametrize("iterations", [1, 2, 5, 100])
def test_learning_rates_are_constant_unless_asked_and_never_zero(iterations: int) -> None:
    constant = load_recipe("scenes", ["optim.lr_decay=0", "optim.lr_warmup=0"]).optim
    assert {lr_scale(constant, iteration, iterations) for iteration in range(iterations)} == {1.0}
    both = load_recipe("scenes", ["optim.lr_decay=40", "optim.lr_warmup=7"]).optim
    assert all(0 < lr_scale(both, iteration, iterations) <= 1 for iteration in range(iterations))


@modes
@pytest.mark.parametrize(("kind", "half"), [("toy", 3), ("sdxl", 1), ("bfloat16", 2)])
def test_a_run_is_half_of_it_a_crash_and_the_other_half(
    mode: str, kind: str, half: int, prompts: Path, tmp_path: Path
) -> None:
    train = {"iterations": 2 * half, "checkpoint_every": half}
    family = "pixart" if kind == "bfloat16" else "sdxl"  # where bfloat16 is emulated, convolutions take long
    changes = {"plan": {"sides": [8, 16]}, "train": train, "data": {"prompts": str(prompts)}}
    recipe = recipe_of(family, tmp_path, mode, **changes)

    def make(name: str) -> Trainer:
        backbone = None if kind == "toy" else TINY[family]()
        if backbone is not None and kind == "bfloat16":
            backbone.pipe.to(dtype=torch.bfloat16)
        return toy(recipe, tmp_path / name, backbone)

    torch.manual_seed(1)
    whole = make("whole")
    assert whole.train() == 2 * half
    torch.manual_seed(2)  # nothing may depend on the global generator
    first = make("parts")
    first.on_iteration = crash_at(half + 1)
    with pytest.raises(Crash):
        first.train()
    assert len(metrics(tmp_path / "parts")) == half + 1
    second = make("parts")
    assert second.train(resume=True) == 2 * half
    assert_same(everything(second), everything(whole))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert [row["iteration"] for row in metrics(tmp_path / "parts")] == list(range(1, 2 * half + 1))
    trained, fresh = everything(whole), everything(make("fresh"))
    still = [name for name, value in fresh.items() if torch.equal(trained[name], value)]
    assert not still, "an update that does nothing would make any resume exact"
    for role in TRAINED:
        for name, parameter in second.roles.in_network(role).items():
            assert torch.equal(parameter, second.roles.named_trainable(role)[name].to(parameter.dtype))


@pytest.mark.parametrize(
    ("mode", "moment"),
    [("lora", 0), ("full", 1), ("lora", 2)]
    + [pytest.param(("lora", "full")[moment % 2], moment, marks=pytest.mark.slow) for moment in range(3, 23)],
)
def test_a_killed_process_resumes_to_the_same_weights(mode: str, moment: int, prompts: Path, tmp_path: Path) -> None:
    """At any moment: with a checkpoint after every iteration, one is being written most of the time."""
    recipe = make_recipe(prompts, mode, train={"iterations": 60, "checkpoint_every": 1})
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    folder, script = tmp_path / "killed", Path(__file__).with_name("killed.py")
    process = start(str(script), str(tmp_path / "recipe.yaml"), str(folder), out=tmp_path / "said")
    deadline = time.monotonic() + 300
    try:
        while not checkpoints(folder / "checkpoints") and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.Random(moment).uniform(0.0, 1.5))
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "said.err").read_text(encoding="utf-8")
    left = len(metrics(folder))
    assert 0 < left < 60
    whole, resumed = toy(recipe, tmp_path / "whole"), toy(recipe, folder)
    assert whole.train() == resumed.train(resume=True) == 60
    assert_same(everything(resumed), everything(whole))
    assert metrics(folder) == metrics(tmp_path / "whole")


def send(number: int, at: int) -> Callable[[int, dict[str, float]], None]:
    def signal_at(done: int, values: dict[str, float]) -> None:
        if done >= at:
            os.kill(os.getpid(), number)

    return signal_at


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_iteration_finish_and_saves(number: int, prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, train={"iterations": 50, "checkpoint_every": 100, "log_every": 100})
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = toy(recipe, tmp_path / "run")
    iterate = trainer.iterate

    def interrupted(iteration: int) -> Any:
        if iteration == 4:
            os.kill(os.getpid(), number)
        return iterate(iteration)

    trainer.iterate = interrupted  # type: ignore[method-assign]
    assert trainer.train() == 5
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == ["step-000005"]
    assert [row["iteration"] for row in metrics(tmp_path / "run")] == [5]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    resumed = toy(recipe, tmp_path / "run")
    assert resumed.start(resume=True) == 5
    assert_same(everything(resumed), everything(trainer))


def test_a_signal_that_comes_after_the_decision_to_save_is_not_lost(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, train={"iterations": 50, "checkpoint_every": 100})
    trainer = toy(recipe, tmp_path / "run")
    trainer.on_iteration = send(signal.SIGTERM, at=4)
    done = trainer.train()
    assert done < 50
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == [f"step-{done:06d}"]


def test_a_second_interrupt_does_not_wait(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, train={"iterations": 50, "checkpoint_every": 3})
    trainer = toy(recipe, tmp_path / "run")

    def twice(done: int, values: dict[str, float]) -> None:
        if done == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer.on_iteration = twice
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) == before
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == ["step-000003"]


def test_a_run_in_another_thread_leaves_signals_alone(prompts: Path, tmp_path: Path) -> None:
    done: list[int] = []
    trainer = toy(make_recipe(prompts), tmp_path / "run")
    thread = threading.Thread(target=lambda: done.append(trainer.train()))
    thread.start()
    thread.join()
    assert done == [6]


def test_a_run_is_not_overwritten_and_nothing_is_not_resumed(prompts: Path, tmp_path: Path) -> None:
    recipe, folder = make_recipe(prompts), tmp_path / "run"
    sentence = f"^nothing to resume in {folder}: it holds no checkpoint; run without --resume$"
    with pytest.raises(RMDError, match=sentence):
        toy(recipe, folder).train(resume=True)
    assert not folder.exists()
    trainer = toy(recipe, folder)
    trainer.train()
    with pytest.raises(
        RMDError, match=f"^{folder} holds a run already: add --resume to continue it, or choose another --out$"
    ):
        toy(recipe, folder).train()
    again = toy(recipe, folder)
    assert again.train(resume=True) == 6  # it was finished: nothing is left to do
    assert_same(everything(again), everything(trainer))
    assert len(metrics(folder)) == 6


def test_another_recipe_does_not_go_on_with_a_run(prompts: Path, tmp_path: Path) -> None:
    toy(make_recipe(prompts), tmp_path / "run").train()
    other = make_recipe(prompts, optim={"student_lr": 5e-3})
    with pytest.raises(RMDError, match="was made with another recipe"):
        toy(other, tmp_path / "run").train(resume=True)


def test_a_folder_that_cannot_be_made_is_told(prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, sentence in (
        (tmp_path / "file", "{} is a file: choose another --out"),
        (tmp_path / "file" / "run", "cannot write to {}: Not a directory; choose another --out"),
    ):
        with pytest.raises(RMDError, match=f"^{sentence.format(folder)}$"):
            toy(make_recipe(prompts), folder).train()


@pytest.fixture
def started(prompts: Path, tmp_path: Path) -> Iterator[Trainer]:
    """A trainer after two good iterations."""
    trainer = toy(make_recipe(prompts), tmp_path / "run")
    for iteration in range(2):
        trainer.iterate(iteration)
    yield trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_student_loss_changes_nothing(value: float, started: Trainer) -> None:
    before, student_loss = everything(started), started.method.student_loss

    def spoiled(*arguments: Any) -> Any:
        loss, rollout = student_loss(*arguments)
        return loss * value, rollout

    started.method.student_loss = spoiled  # type: ignore[method-assign]
    sentence = r"^the student's loss or gradient is not finite at iteration 3; stopped before the optimiser's step: "
    with pytest.raises(RMDError, match=sentence):
        started.iterate(2)
    assert_same(everything(started), before)


@pytest.mark.parametrize("role", TRAINED)
def test_a_bad_gradient_of_a_good_loss_changes_nothing_of_its_role(role: str, started: Trainer) -> None:
    before = everything(started)
    parameter = started.roles.trainable(role)[0]  # type: ignore[arg-type]
    parameter.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(RMDError, match=f"the {role}'s loss or gradient is not finite at iteration 3"):
        started.iterate(2)
    now = everything(started)
    changed = {name.split("/")[0] for name in now if not torch.equal(now[name], before[name])}
    assert changed == (set() if role == "student" else {"student", "average"})


def test_a_bad_loss_stops_the_run_and_leaves_its_checkpoints(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, train={"checkpoint_every": 2})
    trainer = toy(recipe, tmp_path / "run")
    fake_loss = trainer.method.fake_loss

    def spoiled(batch: Any, *arguments: Any) -> Tensor:
        return fake_loss(batch, *arguments) * (float("nan") if batch.iteration == 3 else 1.0)

    trainer.method.fake_loss = spoiled  # type: ignore[method-assign]
    with pytest.raises(RMDError, match=r"the fake's loss .* at iteration 4"):
        trainer.train()
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == ["step-000002"]
    assert toy(recipe, tmp_path / "run").train(resume=True) == 6


def test_gradients_are_clipped(prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts, optim={"clip_norm": 1e-3}), tmp_path / "run")
    values, _ = trainer.iterate(0)
    assert values["fake_grad_norm"] > 1e-3
    norm = torch.stack([p.grad.norm() for p in trainer.roles.trainable("fake")]).norm()  # type: ignore[union-attr]
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_follows_the_student(prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts, optim={"ema": 0.75}), tmp_path / "run")
    expected = {name: value.clone() for name, value in trainer.roles.state("student").items()}
    for iteration in range(4):
        trainer.iterate(iteration)
        for name, value in trainer.roles.state("student").items():
            expected[name] = 0.75 * expected[name] + 0.25 * value
    for name, value in trainer.student_state().items():
        torch.testing.assert_close(value, expected[name])
        assert not torch.equal(value, trainer.roles.state("student")[name])


@modes
def test_the_averaged_student_is_lent_for_a_block(mode: str, prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts, mode, optim={"student_lr": 0.1}), tmp_path / "run")
    trainer.iterate(0)
    trainer.iterate(1)
    before = everything(trainer)
    with pytest.raises(Crash), trainer.averaged_student():
        assert_same(trainer.roles.state("student"), trainer.trained.average)
        raise Crash
    assert_same(everything(trainer), before)
    last = list(trainer.trained.average)[-1]
    assert not torch.equal(before[f"student/{last}"], before[f"average/{last}"])


def test_without_an_average_the_student_is_itself(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, optim={"ema": 0.0})
    trainer = toy(recipe, tmp_path / "run")
    trainer.train()
    assert_same(trainer.student_state(), trainer.roles.state("student"))
    resumed = toy(recipe, tmp_path / "run")
    assert resumed.start(resume=True) == 6
    assert_same(everything(resumed), everything(trainer))


def test_a_run_leaves_its_recipe_metrics_pictures_and_checkpoints(prompts: Path, tmp_path: Path) -> None:
    train = {"iterations": 7, "log_every": 2, "sample_every": 4, "checkpoint_every": 2, "keep_last": 3}
    recipe, folder = make_recipe(prompts, train=train), tmp_path / "run"
    trainer = toy(recipe, folder)
    seen: list[int] = []
    trainer.on_iteration = lambda done, values: seen.append(done)
    trainer.train()
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert load_recipe(str(folder / "recipe.yaml")) == recipe
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == [
        "step-000004",
        "step-000006",
        "step-000007",
    ]
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert pictures == [f"{name}-{i:06d}.png" for name in ("samples", "scores") for i in (4, 7)]
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [2, 4, 6, 7]
    assert set(rows[0]) == {
        "iteration",
        "step",
        "stage",
        "student_loss",
        "student_grad_norm",
        "fake_loss",
        "fake_grad_norm",
        "gap",
        "sample_std",
        "calls_student",
        "calls_teacher",
        "calls_fake",
        *MACHINE,
    }
    held_out = {f"held_out/{kind}/step-{step.index}" for kind in ("fake_error", "gap") for step in trainer.plan.steps}
    assert [set(row) - set(rows[0]) for row in rows] == [set(), held_out, set(), held_out]
    steps = [trainer.method.draw_step(int(row["iteration"]) - 1) for row in rows]
    assert [(row["step"], row["stage"]) for row in rows] == [(step.index, step.stage) for step in steps]


def test_an_iteration_updates_the_student_once_and_the_fake_score_as_often_as_asked(
    prompts: Path, tmp_path: Path
) -> None:
    trainer = toy(make_recipe(prompts, method={"guidance": 2.0, "fake_updates": 3}), tmp_path / "run")
    trainer.iterate(0)
    steps = {role: {int(s["step"]) for s in trainer.trained.optimizers[role].state.values()} for role in TRAINED}
    assert steps == {"student": {1}, "fake": {3}}
    assert trainer.method.evaluations["teacher"] == 1
    assert trainer.method.evaluations["fake"] == 1 + 3


def test_a_batch_is_a_function_of_its_iteration(prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts), tmp_path / "run")
    ((first,), (other,), (again,)) = (trainer.batches(iteration) for iteration in (5, 6, 5))
    assert first.iteration == 5
    assert_same(dict(first.cond.tensors), dict(again.cond.tensors))
    draws = [batch.noise.normal((2, 3), "x") for batch in (first, again, other)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    texts, samples = trainer.prompts.batch(5, 2)
    assert samples == [10, 11]
    assert_same(dict(first.cond.tensors), dict(trainer.backbone.encode(texts).tensors))
    assert len(first.null) == len(first.cond) == 2


@pytest.mark.parametrize("family", sorted(TINY))
def test_the_unconditional_branch_is_encoded_once(
    family: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(family, Path("teacher"), "full")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"prompts": str(prompts)})})
    trainer = Trainer(recipe, TINY[family](), tmp_path / "run")
    with torch.no_grad():
        expected = trainer.backbone.null(3)
    usual, asked = trainer.backbone.null, []
    monkeypatch.setattr(trainer.backbone, "null", lambda count: asked.append(count) or usual(count))
    for _ in range(2):
        assert_same(dict(trainer.encoded(["a", "b", "c"])[1].tensors), dict(expected.tensors))
    assert asked == [1]


def test_pictures_show_the_averaged_student(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = toy(make_recipe(prompts), tmp_path / "run")
    shown: list[dict[str, Tensor]] = []
    panel = callbacks.sample_panel

    def spy(backbone: Backbone, module: Any, plan: Any, cond: Any, *, seed: int) -> Any:
        shown.append({name: value.clone() for name, value in trainer.roles.state("student").items()})
        assert len(cond) == PANEL_PROMPTS
        return panel(backbone, module, plan, cond, seed=seed)

    monkeypatch.setattr(callbacks, "sample_panel", spy)
    trainer.train()
    assert len(shown) == 1
    assert_same(shown[0], trainer.trained.average)


def test_every_call_of_a_network_is_counted_by_role(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        prompts, method={"guidance": 2.0, "fake_updates": 2}, train={"batch_size": 4, "gradient_accumulation_steps": 2}
    )
    trainer = toy(recipe, tmp_path / "run")
    for iteration in range(6):
        values, _ = trainer.iterate(iteration)
        assert values["calls_student"] == 2 * values["step"]
        assert (values["calls_teacher"], values["calls_fake"]) == (2, 2 * (1 + 2))


def test_held_out_samples_change_nothing(prompts: Path, tmp_path: Path) -> None:
    trainer = toy(make_recipe(prompts), tmp_path / "run")
    trainer.iterate(0)
    state, calls = everything(trainer), dict(trainer.method.evaluations)
    found = trainer.held_out()
    assert_same(everything(trainer), state)
    assert trainer.method.evaluations == calls
    assert found == trainer.held_out()
    assert len(found) == 2 * len(trainer.plan.steps) and all(value >= 0 for value in found.values())
    parameters = list(trainer.roles.trainable("fake"))
    with torch.no_grad():
        for parameter in parameters:
            parameter += 1.0
    worse = trainer.held_out()
    assert all(worse[name] != value for name, value in found.items())


def test_a_collapse_stops_the_run_and_keeps_the_last_good_checkpoint(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"iterations": 300, "checkpoint_every": 10, "keep_last": 2}
    recipe = make_recipe(prompts, plan={"steps": 1, "sides": [32], "thresholds": [], "multiple": 4}, train=train)
    trainer = toy(recipe, tmp_path / "run")
    usual, began = trainer.iterate, 24

    def iterate(iteration: int) -> Any:
        values, rollout = usual(iteration)
        return (values | {"sample_std": 0.01 * values["sample_std"]} if iteration >= began else values), rollout

    monkeypatch.setattr(trainer, "iterate", iterate)
    with pytest.raises(RMDError) as caught:
        trainer.train()
    assert str(caught.value).startswith("the student is collapsing: the samples of step 1 have 0.0")
    assert "something has been unusual since iteration 25; stopped at 29" in str(caught.value)
    assert "step-000020 is older: continue from it with --resume --reset-optimizer" in str(caught.value)
    assert [path.name for path in checkpoints(trainer.checkpoint_folder)] == ["step-000010", "step-000020"]
    unguarded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"guard": False, "iterations": 31})})
    other = toy(unguarded, tmp_path / "run")
    monkeypatch.setattr(other, "iterate", iterate)
    assert other.train(resume=True) == 31


def test_the_guard_remembers_across_a_resume(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts)
    trainer = toy(recipe, tmp_path / "run")
    trainer.train()
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 8})})
    resumed = toy(longer, tmp_path / "run")
    resumed.start(resume=True)
    assert resumed.guard.state() == trainer.guard.state() != {}
    assert resumed.start(resume=True, reset_optimizers=True) == 6


def test_a_resume_does_not_depend_on_the_prompts_that_were_remembered(prompts: Path, tmp_path: Path) -> None:
    data = {"prompts": str(prompts), "prompt_cache_mb": 1, "offload": True}
    found = []
    for name, parts in (("whole", (4,)), ("parts", (2, 4))):
        for iterations in parts:
            recipe = recipe_of("pixart", tmp_path, "lora", data=data, train={"iterations": iterations})
            trainer = toy(recipe, tmp_path / name, TINY["pixart"]())
            trainer.train(resume=iterations != parts[0])
        found.append(everything(trainer))
    assert_same(*found)


def test_the_judge_looks_at_the_averaged_student_at_intervals(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(prompts, evaluation={"every": 4}, train={"iterations": 10, "log_every": 100})
    trainer = toy(recipe, tmp_path / "run")
    seen: list[Tensor] = []

    def judge(network: torch.nn.Module) -> dict[str, float]:
        seen.append(torch.cat([parameter.detach().flatten() for parameter in trainer.roles.trainable("student")]))
        return {"judge/all_right": 0.5}

    trainer.judge = judge
    trainer.train()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["iteration"] for row in rows if "judge/all_right" in row] == [4, 8, 10]
    average = torch.cat([value.flatten() for value in trainer.trained.average.values()])
    assert torch.equal(seen[-1], average)


def test_the_checkpoint_that_the_judge_likes_best_is_kept_whatever_is_pruned(prompts: Path, tmp_path: Path) -> None:
    marks = {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.75, 10: 0.5}
    asked = iter(marks.values())
    best = {}
    for last in (6, 10):  # a resume remembers
        recipe = make_recipe(
            prompts, evaluation={"every": 2}, train={"iterations": last, "checkpoint_every": 3, "keep_last": 1}
        )
        trainer = toy(recipe, tmp_path / "run")
        trainer.judge = lambda network: {"judge/all_right": next(asked)}
        trainer.train(resume=last == 10)
        best[last] = trainer.best
    assert best == {6: Best(iteration=4, right=0.75), 10: Best(iteration=4, right=0.75)}
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000004", "step-000010"]


def test_a_callback_of_the_user_sees_every_iteration_after_the_checkpoint_has_begun(
    prompts: Path, tmp_path: Path
) -> None:
    told: list[tuple[Any, ...]] = []

    class Mine(Callback):
        def start(self, run: Run, iteration: int) -> None:
            told.append(("start", iteration))

        def after_student_update(self, run: Run) -> None:
            steps = {role: len(run.trained.optimizers[role].state) > 0 for role in TRAINED}
            told.append(("student", steps["student"]))

        def after_iteration(self, run: Run, iteration: Iteration) -> None:
            recorded = [row["iteration"] for row in read_metrics(run.folder / "metrics.jsonl")]
            told.append(("done", iteration.done, iteration.last, recorded[-1]))

        def close(self) -> None:
            told.append(("close",))

    recipe = make_recipe(prompts, train={"iterations": 2})
    backbone = LinearBackbone(**ZERO_SNR)
    Trainer(build_run(recipe, backbone, folder=tmp_path / "run"), callbacks=[Mine()]).train()
    rest = [("student", True), ("done", 1, False, 1), ("student", True), ("done", 2, True, 2), ("close",)]
    assert told == [("start", 0), *rest]


def test_callbacks_are_closed_in_reverse_order_when_one_fails(prompts: Path, tmp_path: Path) -> None:
    told: list[str] = []

    class Named(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self, run: Run, iteration: int) -> None:
            if self.name == "third":
                raise Crash
            told.append(self.name)

        def close(self) -> None:
            told.append(f"{self.name} closed")

    trainer = toy(make_recipe(prompts), tmp_path / "run")
    trainer.callbacks += [Named(name) for name in ("first", "second", "third")]
    with pytest.raises(Crash):
        trainer.train()
    assert told == ["first", "second", "second closed", "first closed"]


def test_a_run_loads_the_teacher_of_its_recipe(prompts: Path, tmp_path: Path) -> None:
    TINY["pixart"]().pipe.save_pretrained(tmp_path / "teacher")
    recipe = recipe_of("pixart", tmp_path / "teacher", "lora", data={"prompts": str(prompts)})
    loaded = build_run(recipe, folder=tmp_path / "run")
    given = build_run(recipe, TINY["pixart"](), folder=tmp_path / "run")
    assert loaded.identity == given.identity and loaded.plan == given.plan
    assert_same(loaded.roles.state("student"), given.roles.state("student"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": {"batch_size": 3, "gradient_accumulation_steps": 2}}, "a batch of 3 does not divide into 1 process"),
        ({"data": {"prompts": "none.txt"}}, "there is no prompt file none.txt"),
    ],
)
def test_what_is_wrong_with_settings_is_reported_before_weights_are_loaded(
    changes: dict[str, Any], sentence: str, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(RMDError, match=f"^{sentence}"):
        build_run(make_recipe(prompts, **changes), folder=tmp_path / "run")  # whose teacher does not exist
