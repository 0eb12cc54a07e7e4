"""`pipeline.py` of a student: diffusers alone, without RMD, gives RMDPipeline's samples to 1e-6 of their range."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks
from families import FRAMES, TINY, make_student, tiny_pixart
from torch import Tensor

from rmd.core.plan import Crossing
from rmd.models import standalone
from rmd.models.base import Conditioning
from rmd.models.registry import family_class
from rmd.models.student import STANDALONE
from rmd.sample.pipeline import RMDPipeline

families = pytest.mark.parametrize("family", [name for name in sorted(TINY) if family_class(name).runs_alone])
ASKED = ["a red ball", "the blue sky"]
Make = Callable[[str, str], Path]
Both = tuple[Any, RMDPipeline]


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keep diffusers' copies of code out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", folder)
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that makes a student once; its teacher is in `teacher` beside it."""
    return cache(lambda family, mode: make_student(tmp_path_factory.mktemp(f"{family}-{mode}"), family, mode))


@pytest.fixture(scope="module")
def both(make: Make) -> Callable[[str, str], Both]:
    """Return a function that loads a student by diffusers alone and by RMD, once."""
    return cache(lambda family, mode: (alone(make(family, mode), mode), quiet(make(family, mode))))


def alone(student: Path, mode: str) -> Any:
    source = student if mode == "full" else student.parent / "teacher"
    pipe = DiffusionPipeline.from_pretrained(str(source), custom_pipeline=str(student), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe if mode == "full" else pipe.load_student(str(student))


def quiet(student: Path) -> RMDPipeline:
    pipe = RMDPipeline.from_pretrained(student)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (7, 8)]


def assert_equal(pipes: Both, **options: Any) -> None:
    """Check that both give the same latents, from the plan that RMDPipeline has now."""
    ours, theirs = pipes
    plan, rules = theirs.plan.to_dict(), theirs.backbone.conditioning.model_dump()
    ours.student = theirs.student.values | {"plan": plan, "conditioning": rules}
    found: Tensor = ours(ASKED, generator=seeds(), output_type="latent", **options)[0]
    expected = theirs(ASKED, generator=seeds(), output_type="latent", **options)[0]
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@families
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_samples_are_those_of_rmd(family: str, mode: str, both: Callable[[str, str], Both]) -> None:
    assert_equal(both(family, mode))
    assert_equal(both(family, mode), height=48, width=64)


@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "bicubic", "dct", "taps"])
@pytest.mark.parametrize("rule", ["plain", "corrected", "block"])
def test_every_rule_of_a_crossing(rule: str, upsample: str, both: Callable[[str, str], Both]) -> None:
    ours, theirs = both("sd3", "full")
    taps = (0.25, 0.75, 0.75, 0.25) if upsample == "taps" else ()
    values: Any = {"rule": rule, "upsample": upsample, "beta": 0.7, "taps": taps}
    plan = replace(theirs.plan, crossing=Crossing(**values))
    assert_equal((ours, with_changes(theirs, plan=plan)))
    if upsample != "taps":  # these need a whole ratio
        uneven = (replace(theirs.plan.stages[0], height=24, width=24), theirs.plan.stages[1])
        assert_equal((ours, with_changes(theirs, plan=replace(plan, stages=uneven))))


@pytest.mark.parametrize("within", [{"within": "fresh"}, {"eta": 0.6}])
def test_fresh_noise_within_a_stage(within: dict[str, Any], both: Callable[[str, str], Both]) -> None:
    ours, theirs = both("sdxl", "full")
    plan = replace(theirs.plan, crossing=replace(theirs.plan.crossing, **within))
    assert_equal((ours, with_changes(theirs, plan=plan)))


@pytest.mark.parametrize("sizes", [("final", "final"), ("stage", "stage"), ("stage", "final")])
def test_networks_are_told_the_sizes_of_training(sizes: Any, both: Callable[[str, str], Both]) -> None:
    ours, theirs = both("sdxl", "full")
    told = Conditioning(original=sizes[0], target=sizes[1])
    plan = replace(theirs.plan, match_side=(64, 64))
    assert_equal((ours, with_changes(theirs, plan=plan, conditioning=told)))


def with_changes(pipe: RMDPipeline, **changes: Any) -> RMDPipeline:
    return RMDPipeline.of(pipe, pipe.student.model_copy(update=changes))


def test_pixart_is_told_its_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TINY, "pixart", lambda: tiny_pixart(told_size=True))
    from families import _distilled

    _distilled.cache_clear()
    student = make_student(tmp_path, "pixart", "full")
    _distilled.cache_clear()
    assert_equal((alone(student, "full"), quiet(student)))


@families
def test_it_is_called_like_the_models_own_pipeline(family: str, both: Callable[[str, str], Both]) -> None:
    ours, theirs = both(family, "full")
    steps: list[int] = []

    def on_step(pipe: Any, index: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert pipe is ours and set(tensors) == {"latents"}
        steps.append(tensors["latents"].shape[-1])
        return tensors

    each = "num_videos_per_prompt" if family == "wan" else "num_images_per_prompt"
    options = {each: 2, "output_type": "np", "return_dict": False, "num_inference_steps": 4}
    if family == "pixart":  # its own pipeline has diffusers' earlier callback alone
        options["callback"] = lambda index, time, latents: steps.append(latents.shape[-1])
    else:
        options["callback_on_step_end"] = on_step
    result = ours(ASKED[0], generator=seeds(), **options)
    assert isinstance(result, tuple)
    shape = (2, FRAMES, 32, 32, 3) if family == "wan" else (2, 32, 32, 3)
    assert result[0].shape == shape
    assert steps == [8, 16, 16, 16]  # latents for the step that comes next
    assert ours.scheduler.config.get("_class_name") == theirs.scheduler.config.get("_class_name")
    assert set(ours.components) == set(theirs.components)


def test_refusals(both: Callable[[str, str], Both], make: Make, tmp_path: Path) -> None:
    ours, theirs = both("sdxl", "full")
    ours.student = theirs.student.values
    with pytest.raises(ValueError, match="this student has 4 steps, not 25: leave them out"):
        ours("", num_inference_steps=25)
    for options in ({"guidance_scale": 5.0}, {"negative_prompt": "blurred"}):
        with pytest.raises(ValueError, match="guidance is distilled into the student"):
            ours("", **options)
    conditioning = {**theirs.student.values["conditioning"], "pos_rescale": True}
    ours.student = theirs.student.values | {"conditioning": conditioning}
    with pytest.raises(ValueError, match="this student rescales positions, for which RMD itself is needed"):
        ours("")
    assert type(ours.scheduler).__name__ == "DDIMScheduler"  # the official one is back after an error
    with pytest.raises(ValueError, match="is a whole pipeline: load it by from_pretrained"):
        both("sdxl", "lora")[0].load_student(str(make("sdxl", "full")))


def test_it_runs_without_rmd(make: Make, both: Callable[[str, str], Both], tmp_path: Path) -> None:
    student = make("sdxl", "full")
    script = f"""
import sys
sys.modules["rmd"] = None  # importing it fails
import torch
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks
pipe = DiffusionPipeline.from_pretrained({str(student)!r}, custom_pipeline={str(student)!r}, trust_remote_code=True)
generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
latents = pipe({ASKED!r}, generator=generators, output_type="latent").images
torch.save(latents, {str(tmp_path / "latents.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={"HF_HOME": str(tmp_path), "PATH": ""})
    found = torch.load(tmp_path / "latents.pt", weights_only=True)
    expected = quiet(student)(ASKED, generator=seeds(), output_type="latent").images
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@families
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_block_of_modular_diffusers(family: str, mode: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("diffusers_modules.local")]:
        monkeypatch.delitem(sys.modules, name)  # local folders share one name: a process reads the code of one of them
    student = make(family, mode)
    blocks = ModularPipelineBlocks.from_pretrained(str(student), trust_remote_code=True)
    pipe = blocks.init_pipeline(str(student if mode == "full" else student.parent / "teacher"))
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    options = {"output_type": "latent"} | ({} if mode == "full" else {"student": str(student)})
    for _ in range(2):  # the second call finds the adapter on the network
        found = pipe(prompt=ASKED, generator=seeds(), output="images", **options)
    expected = quiet(student)(ASKED, generator=seeds(), output_type="latent")[0]
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_rmd_neither_runs_nor_copies_the_file(tmp_path: Path) -> None:
    student = make_student(tmp_path, "sdxl", "full")
    written = (student / STANDALONE).read_text(encoding="utf-8")
    (student / STANDALONE).write_text("raise SystemExit('this code was run')")
    pipe = quiet(student)
    pipe(ASKED[0], generator=seeds()[0], output_type="latent")
    copy = pipe.save_pretrained(tmp_path / "copy")
    assert (copy / STANDALONE).read_text(encoding="utf-8") == written


@families
def test_the_file_names_the_models_own_pipeline(family: str, make: Make) -> None:
    text = (make(family, "lora") / STANDALONE).read_text(encoding="utf-8")
    name = json.loads((make(family, "lora").parent / "teacher" / "model_index.json").read_text(encoding="utf-8"))
    assert text.count(f"import {name['_class_name']} as Base") == 1 and "import rmd" not in text
    assert len(text.splitlines()) <= 250


def test_it_is_diffusers_own_class() -> None:
    assert issubclass(standalone.RMDPipeline, DiffusionPipeline)
