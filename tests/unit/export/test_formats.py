"""Every format loads back as the same student; folding, the model card, and the cascade of FlowMatchLCMScheduler."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler
from families import TINY, make_student, tiny_sd3
from helpers import PROMPTS
from safetensors.torch import load_file
from torch import Tensor

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.core.plan import Crossing, StepPlan, build_plan
from rmd.core.randomness import GeneratorNoise
from rmd.core.sampling import run_cascade
from rmd.export import formats
from rmd.export.formats import FORMATS, export_student, folded, lcm_scheduler
from rmd.models.generate import predictor
from rmd.models.registry import family_class
from rmd.models.student import LORA_NAME
from rmd.sample.pipeline import RMDPipeline

PAIRS = [
    *((family, "lora", to) for family in sorted(TINY) for to in ("diffusers-lora", "comfyui", "fused")),
    ("sdxl", "lora", "kohya"),
    *((family, "full", "diffusers-full") for family in sorted(TINY)),
]


SLOW = [("sd3", "lora", "comfyui"), ("sd3", "lora", "fused"), ("sd3", "full", "diffusers-full")]
"""Other families show the same for these formats."""


def samples(pipe: RMDPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    latents: Tensor = pipe(PROMPTS[:2], generator=torch.Generator().manual_seed(0), output_type="latent")[0]
    return latents / latents.abs().max()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Tensor]]:
    """Return a function that makes a student, once, and returns its folder and its samples."""

    @cache
    def build(family: str, mode: str) -> tuple[Path, Tensor]:
        student = make_student(tmp_path_factory.mktemp(f"{family}-{mode}"), family, mode)
        return student, samples(RMDPipeline.from_pretrained(student))

    return build


@pytest.mark.parametrize(
    ("family", "mode", "to"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if pair in SLOW else []) for pair in PAIRS],
)
def test_an_export_is_the_same_student(
    family: str, mode: str, to: str, made: Callable[[str, str], tuple[Path, Tensor]], tmp_path: Path
) -> None:
    student, expected = made(family, mode)
    out = export_student(student, to, tmp_path / "out")
    teacher = student.parent / "teacher"
    torch.testing.assert_close(samples(RMDPipeline.from_pretrained(out, teacher=teacher)), expected, rtol=0, atol=1e-4)
    if to in ("fused", "diffusers-full"):
        stock = DiffusionPipeline.from_pretrained(out)
        stages = stock.scheduler.config["stages"]
        assert [stage["height"] for stage in stages] == [16, 32]
        assert sum(len(stage["timesteps"]) for stage in stages) == 4
    else:
        keys = set(load_file(out / LORA_NAME))
        kohya = "kohya" in family_class(family).lora_layouts and to != "diffusers-lora"
        assert all(key.startswith("lora_unet_") == kohya for key in keys)


def test_stock_diffusers_reads_the_kohya_file_and_its_alpha_is_the_rank(tmp_path: Path) -> None:
    out = export_student(make_student(tmp_path, "sdxl", "lora"), "kohya", tmp_path / "out")
    tensors = load_file(out / LORA_NAME)
    alphas = [float(value) for key, value in tensors.items() if key.endswith(".alpha")]
    assert alphas and set(alphas) == {2.0}
    fresh = TINY["sdxl"]()
    fresh.pipe.load_lora_weights(out, weight_name=LORA_NAME)


def test_comfyui_files_have_the_names_of_wans_own_code_and_load_in_stock_diffusers(tmp_path: Path) -> None:
    out = export_student(make_student(tmp_path, "wan", "lora"), "comfyui", tmp_path / "out")
    keys = set(load_file(out / LORA_NAME))
    layers = {key.removesuffix(".lora_A.weight") for key in keys if key.endswith(".lora_A.weight")}
    assert layers == {
        f"diffusion_model.blocks.{i}.{layer}"
        for i in range(2)
        for layer in (*(f"{a}_attn.{p}" for a in ("self", "cross") for p in "qkvo"), "ffn.0", "ffn.2")
    }
    fresh = TINY["wan"]()
    fresh.pipe.load_lora_weights(out, weight_name=LORA_NAME, adapter_name="x")
    adapted = {name.rpartition(".lora_A")[0] for name, _ in fresh.denoiser.named_parameters() if ".lora_A" in name}
    assert len(adapted) == len(layers)


def test_folding_keeps_the_product_of_both_matrices() -> None:
    a, b = torch.randn(2, 6), torch.randn(5, 2)
    tensors = folded({"x.lora_A.weight": a, "x.lora_B.weight": b}, 3.0)
    torch.testing.assert_close(tensors["x.lora_B.weight"] @ tensors["x.lora_A.weight"], 3.0 * b @ a)


@pytest.mark.parametrize(
    ("family", "mode", "to", "sentence"),
    [
        (
            "sdxl",
            "lora",
            "diffusers-full",
            "is a lora student, which cannot be exported to diffusers-full: use diff",
        ),
        ("sdxl", "full", "kohya", "is a full student, which cannot be exported to kohya: use diffusers-full"),
        ("sd3", "lora", "kohya", "the kohya format has no names for the layers of the family sd3: use comfyui"),
        ("sd3", "lora", "khoya", f"unknown format 'khoya' (did you mean 'kohya'?): use one of {', '.join(FORMATS)}"),
    ],
)
def test_a_format_that_does_not_suit_is_refused(family: str, mode: str, to: str, sentence: str, tmp_path: Path) -> None:
    student = make_student(tmp_path, family, mode)
    with pytest.raises(RMDError) as error:
        export_student(student, to, tmp_path / "out")
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_lora_of_another_base_is_refused(tmp_path: Path) -> None:
    student = make_student(tmp_path, "sd3", "lora")
    other = tiny_sd3(dual=False)
    other.pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(RMDError, match=r"^the LoRA of .* does not fit this base: it has no layer .*attn2"):
        export_student(student, "diffusers-lora", tmp_path / "out", teacher=tmp_path / "other")


def test_a_mismatch_is_an_error_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student(tmp_path, "sdxl", "lora")
    monkeypatch.setattr(formats, "folded", lambda state, scale: state)  # alpha is twice the rank
    with pytest.raises(RMDError, match=r"^the diffusers-lora export is not the same student: its samples"):
        export_student(student, "diffusers-lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_describes_the_student(tmp_path: Path) -> None:
    student = make_student(tmp_path, "sdxl", "lora")
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: openrail++\n---\n# A teacher\n", encoding="utf-8")
    out = export_student(student, "diffusers-lora", tmp_path / "out", base_model="someone/teacher")
    card = (out / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "someone/teacher"
    assert (front["base_model_relation"], front["license"]) == ("adapter", "openrail++")
    assert {"rmd", "sdxl", "lora"} <= set(front["tags"])
    for words in (
        "| 1 | 16x16 | 1000.0 |",
        "| 4 | 32x32 |",
        "RMDPipeline.from_pretrained",
        "`prompts.txt`",
        "guidance of 2",
    ):
        assert words in card


def cascade(beta: float, *, steps: int = 2, sides: Any = ((16, 16), (32, 32))) -> StepPlan:
    crossing = Crossing(rule="plain", beta=beta)
    return build_plan(
        tiny_sd3().schedule, steps=steps, sides=sides, thresholds=[-2.5], time_map="none", multiple=4,
        crossing=crossing, training_crossing=crossing,
    )  # fmt: skip


def test_the_stock_lcm_scheduler_runs_the_cascade_of_one_step_per_stage_without_reinjection() -> None:
    backbone, plan = tiny_sd3(), cascade(0.0)
    config = lcm_scheduler(plan)
    assert config is not None
    cond = backbone.encode(PROMPTS[:1])
    predict = predictor(backbone, backbone.denoiser, plan, cond)
    with torch.no_grad():
        expected = run_cascade(
            predict, plan, backbone.schedule, lambda stage: backbone.latent_shape(1, stage.height, stage.width),
            GeneratorNoise([torch.Generator().manual_seed(3)]),
        )  # fmt: skip
        scheduler = FlowMatchLCMScheduler.from_config({k: v for k, v in config.items() if k != "sigmas"})
        scheduler.set_timesteps(sigmas=config["sigmas"])
        g = torch.Generator().manual_seed(3)
        x = torch.randn(backbone.latent_shape(1, 16, 16), generator=g)
        for step, t in zip(plan.steps, scheduler.timesteps, strict=True):
            kwargs = backbone.stage_cond(cond, plan.stage_of(step), plan.stages[-1])
            output = backbone.forward(backbone.denoiser, x, t.expand(1), kwargs)
            x = scheduler.step(output, t, x, generator=g).prev_sample
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


def test_the_stock_lcm_scheduler_runs_no_other_cascade() -> None:
    assert lcm_scheduler(cascade(0.5)) is None
    assert lcm_scheduler(cascade(0.0, steps=4)) is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, out = make_student(tmp_path, "pixart", "full"), tmp_path / "out"
    assert main(["export", str(student), "--to", "diffusers-full", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"diffusers-full: {out} (loaded back: the same samples; its card is README.md)\n"
    assert json.loads((out / "rmd_config.json").read_text())["family"] == "pixart"
