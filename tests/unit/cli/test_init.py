"""`rmd init`: the recipe that it writes fits the teacher and the card, and runs; one sentence for each error."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import TINY

from rmd.bench import choice as choosing
from rmd.bench.cards import usable_bytes
from rmd.bench.memory import ENCODERS, SLACK, Memory, Part
from rmd.cli.app import main
from rmd.recipes.schema import Recipe, load_recipe

Captured = pytest.CaptureFixture[str]
GB = 1e9


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(family: str) -> Path:
    TINY[family]().pipe.save_pretrained("teacher")
    return Path("teacher")


@pytest.mark.parametrize("family", list(TINY))
def test_the_recipe_says_what_the_teacher_says(family: str, capsys: Captured) -> None:
    teacher = saved(family)
    for weights in teacher.rglob("*.safetensors"):
        weights.unlink()  # only configurations are read
    sides = ["--sides=16,32"]
    assert main(["init", "teacher", "--gpu", "24", "--prompts", "mine.txt", *sides]) == 0
    out = capsys.readouterr().out
    recipe = load_recipe("recipe.yaml")
    backbone = TINY[family]()
    assert recipe.name == "recipe" and recipe.family == backbone.family and recipe.teacher == "teacher"
    assert not isinstance(recipe.noise, str) and recipe.noise.kind == backbone.schedule.kind
    assert recipe.plan.multiple == backbone.size_multiple and recipe.plan.sides == ((16, 16), (32, 32))
    assert recipe.data.prompts == "mine.txt"
    assert "in total" in out and "rmd train recipe.yaml --dry-run" in out
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    assert text.startswith("# A first recipe for teacher on a card with 24 GB.\n# Written by `rmd init`: ")
    assert f"# read from its scheduler; the network predicts {backbone.prediction}\n" in text
    assert f"the default of {type(backbone.pipe).__name__}" in text


def test_the_recipe_passes_a_dry_run(capsys: Captured) -> None:
    saved("sdxl")
    Path("prompts.txt").write_text("a red ball\na blue cube\n", encoding="utf-8")
    assert main(["init", "teacher", "--gpu", "24", "--batch", "2", "--sides=16,32", "--out", "mine.yaml"]) == 0
    assert load_recipe("mine.yaml").train.batch_size == 2
    capsys.readouterr()
    assert main(["plan", "mine.yaml"]) == 0
    assert main(["train", "mine.yaml", "--dry-run", "--device", "cpu"]) == 0
    assert "3200 iterations of batch 2 into runs/mine" in capsys.readouterr().out


def test_a_packaged_teacher_needs_no_gpu(capsys: Captured) -> None:
    assert main(["init", "scenes", "--out", "s.yaml"]) == 0
    out = capsys.readouterr().out
    assert "scenes on a CPU or any GPU" in out and "Memory" not in out
    ours, packaged = load_recipe("s.yaml"), load_recipe("scenes")
    assert ours.model_dump(exclude={"name"}) == packaged.model_dump(exclude={"name"})


def test_the_card_that_is_found(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    saved("sdxl")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = SimpleNamespace(name="Small Card", total_memory=8 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    assert main(["init", "teacher", "--sides=16,32"]) == 0
    assert "teacher on Small Card with 8.0 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nobody/here", "--gpu", "24"], "nobody/here is neither a folder nor in the cache of the Hub, and the Hub"),
        (["./none", "--gpu", "24"], "there is no folder ./none, and a repository on the Hub cannot have this name"),
        (["empty", "--gpu", "24"], "empty is not a diffusers pipeline: it has no model_index.json"),
        (["foreign", "--gpu", "24"], "no backbone is registered for LTXPipeline: registered are "),
        (["headless", "--gpu", "24"], "the size of the teacher headless is unknown: give the folder of a pipeline"),
        (["teacher"], "torch finds no GPU here: say how much memory the card will have, as in --gpu 24"),
        (
            ["teacher", "--gpu", "24", "--out", "there.yaml"],
            "there.yaml exists: choose another --out, or add --replace",
        ),
        (["teacher", "--gpu", "24", "--out", "recipe.txt"], "recipe.txt should end in .yaml, as recipes do: choose"),
        (["teacher", "--gpu", "24", "--sides=17,32"], "stage 1"),
        (["teacher", "--gpu", "1", "--sides=16,32"], "this teacher does not fit into 1.0 usable GB (lora: weights and"),
        (["scenes", "--mode", "lora"], "there is no packaged recipe for scenes with roles.mode=lora: leave out --mode"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_sentence(words: list[str], sentence: str, capsys: Captured) -> None:
    if words[0] == "teacher":
        saved("sdxl")
    Path("there.yaml").touch()
    for name, index in {"empty": None, "foreign": ["LTXPipeline"], "headless": ["WanPipeline"]}.items():
        Path(name).mkdir()
        if index is not None:
            (Path(name) / "model_index.json").write_text(json.dumps({"_class_name": index[0]}), encoding="utf-8")
            (Path(name) / "scheduler").mkdir()
            flow = json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"})
            (Path(name) / "scheduler" / "scheduler_config.json").write_text(flow, encoding="utf-8")
    before = sorted(Path().rglob("*"))
    assert main(["init", *words]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("rmd: ") and sentence in err
    assert sorted(Path().rglob("*")) == before


# --- the choice, on estimates of known sizes --------------------------------------------------------------------------


def sized(monkeypatch: pytest.MonkeyPatch, *, update: float, encoders: float) -> None:
    """Let weights take 4 GB with adapters and 40 in full, and an update `update` GB a sample, a fifth if recomputed."""

    def held(recipe: Recipe) -> tuple[Part, ...]:
        return (Part("weights", (4 if recipe.roles.mode == "lora" else 40) * GB),)

    def estimate(recipe: Recipe) -> Memory:
        samples = recipe.train.batch_size // recipe.train.gradient_accumulation_steps
        each = update / (5 if recipe.train.gradient_checkpointing else 1)
        phases = (Part("update of the student", samples * each * GB),)
        return Memory(recipe.roles.mode, samples, (*held(recipe), Part(ENCODERS, encoders * GB)), phases)

    monkeypatch.setattr(choosing, "meta_networks", lambda recipe: recipe)
    monkeypatch.setattr(choosing, "held_parts", lambda recipe, group: held(recipe))
    monkeypatch.setattr(choosing, "recipe_memory", estimate)


def chosen(gb: float, *names: str) -> choosing.Choice:
    return choosing.choose([load_recipe(name) for name in names], usable_bytes(gb), lambda text: None)


def test_as_many_samples_as_fit_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, update=2, encoders=1)
    small, large = chosen(24, "sdxl"), chosen(80, "sdxl")
    assert [c.recipe.train.gradient_accumulation_steps for c in (small, large)] == [4, 1]
    assert [c.needed.samples for c in (small, large)] == [8, 32]
    assert small.encoders == "gpu" and not small.recipe.train.gradient_checkpointing and small.passed_over == ()
    assert small.needed.total == SLACK + (4 + 1 + 16) * GB <= usable_bytes(24)


def test_checkpointing_comes_before_another_way_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, update=30, encoders=1)
    found = chosen(24, "sdxl", "sdxl-full")
    assert found.recipe.roles.mode == "lora" and found.recipe.train.gradient_checkpointing
    assert found.passed_over == ("lora: one sample takes 36.0 GB, without text encoders",)


def test_what_does_not_fit_in_full_is_trained_with_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, update=1, encoders=0)
    found = chosen(24, "pixart", "pixart-lora")
    assert found.recipe.roles.mode == "lora"
    assert found.passed_over == ("full: weights and optimisers alone take 42.0 GB",)
    assert chosen(80, "pixart", "pixart-lora").recipe.roles.mode == "full"


@pytest.mark.parametrize(("encoders", "place"), [(1, "gpu"), (10, "offload"), (20, "cache")])
def test_text_encoders_leave_the_gpu_if_they_must(encoders: float, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, update=12, encoders=encoders)
    found = chosen(24, "sdxl")
    assert found.encoders == place and found.recipe.data.offload == (place != "gpu")
    assert found.needed.total <= usable_bytes(24)
    assert ("encoding of prompts" in {phase.name for phase in found.needed.phases}) == (place == "offload")


def test_a_card_that_is_too_small_is_told_the_smallest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    from rmd.common.errors import RMDError

    sized(monkeypatch, update=100, encoders=1)
    with pytest.raises(
        RMDError,
        match=r"lora with gradient checkpointing: one sample takes 26\.0 GB.*the smallest card that it fits has 32 GB",
    ):
        chosen(24, "sdxl")
    sized(monkeypatch, update=10_000, encoders=1)
    with pytest.raises(RMDError, match=r"nor into any single card: train on several GPUs, or give smaller --sides$"):
        chosen(24, "sdxl")
    sized(monkeypatch, update=100, encoders=1)
    with pytest.raises(RMDError, match=r"full: weights and optimisers alone take 42\.0 GB\).*that it fits has 80 GB:"):
        chosen(24, "sdxl-full")
