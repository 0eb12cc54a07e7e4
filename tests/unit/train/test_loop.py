"""The training loop: exact resume after any kind of end, no update from a bad loss, and learning rates."""

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
from helpers import assert_same, make_recipe, write_prompts
from processes import start
from torch import Tensor
from toy_runs import Crash, crash_at, everything, metrics, toy

from rmd.common.errors import RMDError
from rmd.models.roles import TRAINED
from rmd.recipes.schema import load_recipe, to_yaml
from rmd.train.checkpoint import checkpoints
from rmd.train.loop import Trainer, lr_scale


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


def test_learning_rates_rise_hold_and_fall(prompts: Path, tmp_path: Path) -> None:
    optim = {"student_lr": 1e-2, "fake_lr": 3e-2, "lr_warmup": 2, "lr_decay": 3}
    recipe = make_recipe(prompts, "full", train={"iterations": 8}, optim=optim)
    trainer = toy(recipe, tmp_path / "run")
    rates: dict[str, list[float]] = {role: [] for role in TRAINED}
    for iteration in range(8):
        trainer.iterate(iteration)
        for role in TRAINED:
            rates[role].append(trainer.trained.optimizers[role].param_groups[0]["lr"])
    scales = [1 / 3, 2 / 3, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]
    assert rates["student"] == pytest.approx([1e-2 * scale for scale in scales])
    assert rates["fake"] == pytest.approx([3e-2 * scale for scale in scales])


@pytest.mark.parametrize("iterations", [1, 2, 5, 100])
def test_learning_rates_are_constant_unless_asked_and_never_zero(iterations: int) -> None:
    constant = load_recipe("scenes", ["optim.lr_decay=0", "optim.lr_warmup=0"]).optim
    assert {lr_scale(constant, iteration, iterations) for iteration in range(iterations)} == {1.0}
    both = load_recipe("scenes", ["optim.lr_decay=40", "optim.lr_warmup=7"]).optim
    assert all(0 < lr_scale(both, iteration, iterations) <= 1 for iteration in range(iterations))


@pytest.mark.parametrize(
    ("mode", "kind", "half"),
    [
        ("lora", "toy", 3), ("full", "toy", 3), ("lora", "sdxl", 1), ("full", "bfloat16", 2),
        pytest.param("full", "sdxl", 1, marks=pytest.mark.slow),
        pytest.param("lora", "bfloat16", 2, marks=pytest.mark.slow),
    ],
)  # fmt: skip
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
    [("lora", 0), ("full", 1)]
    + [pytest.param(("lora", "full")[moment % 2], moment, marks=pytest.mark.slow) for moment in range(2, 23)],
)
def test_a_killed_process_resumes_to_the_same_weights(mode: str, moment: int, prompts: Path, tmp_path: Path) -> None:
    """The process is killed at any moment; a checkpoint follows every iteration, so one is mostly being written."""
    recipe = make_recipe(prompts, mode, train={"iterations": 30, "checkpoint_every": 1})
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
    assert 0 < left < 30
    whole, resumed = toy(recipe, tmp_path / "whole"), toy(recipe, folder)
    assert whole.train() == resumed.train(resume=True) == 30
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
    """Yield a trainer after two good iterations."""
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


def test_clipping_can_be_the_students_alone(prompts: Path, tmp_path: Path) -> None:
    for order, role in (("student_first", "fake"), ("fake_first", "student")):
        method = {"guidance": 2.0, "order": order}
        recipe = make_recipe(prompts, method=method, optim={"clip_norm": 1e-3, "clipped": "student"})
        trainer = toy(recipe, tmp_path / order)
        values, _ = trainer.iterate(0)  # leaves the gradients of its last update
        gradients = [p.grad.norm() for p in trainer.roles.trainable(role)]
        norm, before = float(torch.stack(gradients).norm()), values[f"{role}_grad_norm"]
        assert before > 2e-3
        assert norm == pytest.approx(1e-3 if role == "student" else before, rel=1e-3)


@pytest.mark.parametrize("name", ["rmd", "tdm", "dmd2"])
def test_the_fake_score_can_be_first_with_a_step_of_its_own_on_the_same_trajectory(
    name: str, prompts: Path, tmp_path: Path
) -> None:
    """Its sample is the one that the student's roll-out from the same noise goes through."""
    method: dict[str, Any] = {"name": name, "guidance": 2.0, "order": "fake_first", "fake_updates": 2, "tau": "all"}
    one_size = {"plan": {"sides": [32], "thresholds": []}, "crossing": {"within": "fresh"}} if name != "rmd" else {}
    trainer = toy(make_recipe(prompts, method=method, **one_size), tmp_path / "run")
    events: list[tuple[str, int]] = []
    samples: dict[str, Any] = {}

    def spy(role: str, usual: Any) -> Any:
        def loss(batch: Any, what: Any, *rest: Any) -> Any:
            step = what if role == "student" else what.step
            weights = trainer.roles.state("student")
            samples[role] = (batch, what, {name: value.clone() for name, value in weights.items()})
            events.append((role, step.index))
            return usual(batch, what, *rest)

        return loss

    own: list[int] = []
    trainer.method.student_loss = spy("student", trainer.method.student_loss)
    trainer.method.fake_loss = spy("fake", trainer.method.fake_loss)
    for iteration in range(8):
        values, _ = trainer.iterate(iteration)
        (first, step), (again, other), (last, trained) = events
        assert (first, again, last) == ("fake", "fake", "student")
        assert (step, trained) == (other, int(values["step"]))
        assert (values["calls_student"], values["calls_fake"], values["calls_teacher"]) == (step + trained, 3, 1)
        before, after = samples["fake"][2], samples["student"][2]
        assert all(torch.equal(before[key], after[key]) for key in before), "the student has not moved in between"
        assert samples["fake"][0] is samples["student"][0]
        assert not samples["fake"][1].y.requires_grad
        own.append(step - trained)
        events.clear()
    assert len(set(own)) > 1, "the two steps are drawn independently"


def test_an_iteration_updates_the_student_once_and_the_fake_score_as_often_as_asked(
    prompts: Path, tmp_path: Path
) -> None:
    trainer = toy(make_recipe(prompts, method={"guidance": 2.0, "fake_updates": 3}), tmp_path / "run")
    trainer.iterate(0)
    steps = {role: {int(s["step"]) for s in trainer.trained.optimizers[role].state.values()} for role in TRAINED}
    assert steps == {"student": {1}, "fake": {3}}
    assert trainer.method.evaluations["teacher"] == 1
    assert trainer.method.evaluations["fake"] == 1 + 3


def test_every_call_of_a_network_is_counted_by_role(prompts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        prompts, method={"guidance": 2.0, "fake_updates": 2}, train={"batch_size": 4, "gradient_accumulation_steps": 2}
    )
    trainer = toy(recipe, tmp_path / "run")
    for iteration in range(6):
        values, _ = trainer.iterate(iteration)
        assert values["calls_student"] == 2 * values["step"]
        assert (values["calls_teacher"], values["calls_fake"]) == (2, 2 * (1 + 2))


def test_a_resume_does_not_depend_on_the_prompts_that_were_remembered(prompts: Path, tmp_path: Path) -> None:
    data = {"prompts": str(prompts), "prompt_cache_mb": 1, "offload": True}
    states = []
    for name, parts in (("whole", (4,)), ("parts", (2, 4))):
        for iterations in parts:
            recipe = recipe_of("pixart", tmp_path, "lora", data=data, train={"iterations": iterations})
            trainer = toy(recipe, tmp_path / name, TINY["pixart"]())
            trainer.train(resume=iterations != parts[0])
        states.append(everything(trainer))
    assert_same(*states)
