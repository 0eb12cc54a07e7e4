"""sd-scripts' own loader reads the export for kohya: every tensor, with the network's output that diffusers has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from families import distilled, recipe_of
from helpers import TOKENIZER
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from rmd.export.formats import export_student
from rmd.models.sdxl import SDXLBackbone
from rmd.models.student import load_student, save_student

CHANNELS, CONTEXT, POOLED = 32, 2048, 1280
"""SDXL's blocks and depths with a tenth of its channels; sd-scripts fixes what its text encoders give."""
NAME = "pytorch_lora_weights.safetensors"
Result = tuple[Path, dict[str, Any], dict[str, torch.Tensor]]


def backbone() -> SDXLBackbone:
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=2, use_linear_projection=True,
        block_out_channels=(CHANNELS, 2 * CHANNELS, 4 * CHANNELS), transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 1, 2),
        cross_attention_dim=CONTEXT, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=POOLED + 6 * 256,
    ).eval()  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4), latent_channels=4, norm_num_groups=4, mid_block_add_attention=False,
    ).eval()  # fmt: skip
    config = CLIPTextConfig(
        vocab_size=len(TOKENIZER), hidden_size=CONTEXT, intermediate_size=8, projection_dim=POOLED,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TOKENIZER.model_max_length,
        bos_token_id=TOKENIZER.bos_token_id, eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=None, text_encoder_2=CLIPTextModelWithProjection(config).eval(), tokenizer=None,
        tokenizer_2=TOKENIZER, unet=unet, add_watermarker=False,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )  # fmt: skip
    return SDXLBackbone(pipe)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The student's folder, what sd-scripts says about the export, and what it has loaded."""
    scripts = Path(os.environ.get("SD_SCRIPTS", ""))
    assert (scripts / "networks" / "lora.py").is_file(), "there is no sd-scripts: make test-kohya SD_SCRIPTS=FOLDER"
    folder = tmp_path_factory.mktemp("kohya")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = backbone()
    teacher.pipe.save_pretrained(folder / "teacher")
    plan = {"steps": 4, "sides": [16, 32], "thresholds": [-2.5], "multiple": 8}
    recipe = recipe_of("sdxl", folder / "teacher", "lora", plan=plan, noise={"rescale_betas_zero_snr": False})
    student = save_student(teacher, distilled(teacher, "lora").state("student"), recipe, folder / "student")
    export = export_student(student, "kohya", folder / "export")
    g = torch.Generator().manual_seed(1)
    given = {name: torch.randn(shape, generator=g) for name, shape in shapes().items()}
    sizes = teacher.pipe.unet.add_time_proj(torch.tensor([32.0, 32, 0, 0, 32, 32])).flatten()[None]
    inputs = {**given, "y": torch.cat([given["pooled"], sizes], 1), "time": torch.tensor([500.0])}
    save_file(inputs, folder / "inputs.safetensors")
    script, base = Path(__file__).with_name("read_export.py"), "unet/diffusion_pytorch_model.safetensors"
    files = [export / NAME, folder / "teacher" / base, folder / "inputs.safetensors", folder / "result.safetensors"]
    python = os.environ.get("SD_SCRIPTS_PYTHON") or sys.executable
    ended = subprocess.run(
        [python, script, *files, str(CHANNELS)], cwd=scripts, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder, json.loads(ended.stdout.splitlines()[-1]), load_file(folder / "result.safetensors")


def shapes() -> dict[str, tuple[int, ...]]:
    return {"x": (1, 4, 16, 16), "context": (1, 20, CONTEXT), "pooled": (1, POOLED)}


def test_no_tensor_is_missing_or_left_over(read: Result) -> None:
    folder, said, _ = read
    written = [name for name in load_file(folder / "export" / NAME) if name.endswith("lora_down.weight")]
    print(f"{said['layers']} layers")
    assert said["missing"] == said["unexpected"] == [] and said["layers"] == len(written) > 700


def test_the_weights_are_those_of_the_export(read: Result) -> None:
    """The names are other ones there, and are therefore left out of the comparison."""
    folder, _, loaded = read
    ours, theirs = load_file(folder / "export" / NAME), {k: v for k, v in loaded.items() if k.startswith("lora.")}
    assert len(ours) == len(theirs)
    for end in ("lora_down.weight", "lora_up.weight", "alpha"):
        left, right = (
            sorted(value.float().numpy().tobytes() for name, value in tensors.items() if name.endswith(end))
            for tensors in (ours, theirs)
        )
        assert left == right, end


@torch.no_grad()
def test_the_network_gives_the_same_output(read: Result) -> None:
    folder, _, loaded = read
    given = load_file(folder / "inputs.safetensors")
    unet = load_student(folder / "student").backbone.pipe.unet
    added = {"text_embeds": given["pooled"], "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]])}
    wanted = unet(given["x"], given["time"], given["context"], added_cond_kwargs=added).sample
    difference = float((loaded["after"] - wanted).abs().max() / wanted.abs().max())
    print(f"largest difference {difference:.1e}")
    assert difference <= 1e-4
    assert float((loaded["after"] - loaded["before"]).abs().max()) > 0.01 * float(wanted.abs().max())
