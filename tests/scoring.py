"""Pictures with their prompts, small networks with random weights, and the command that scores them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from clip_reference import random_network
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import Dinov2Config, Dinov2Model

from rmd.scores.clip import Heads, from_open_clip
from rmd.scores.dino import DINO
from rmd.scores.metrics import AESTHETIC_V1, OPENAI

METRICS = ("aesthetic-v1", "diversity")
PROMPTS, EACH = 7, 2
PREDICTOR = "LAION-AI/aesthetic-predictor"


def write_home(home: Path) -> None:
    """Write pictures, and the networks of the metrics."""
    network = random_network(64, 64, Heads(64, 64, "quick_gelu"), seed=1)
    from_open_clip(network.state, network.heads).save_pretrained(home / "weights" / OPENAI)
    (home / "weights" / PREDICTOR).mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(20, 1).state_dict(), home / "weights" / PREDICTOR / AESTHETIC_V1)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=2, image_size=32)
    Dinov2Model(config).save_pretrained(home / "weights" / DINO)
    (home / "pictures").mkdir()
    for seed in range(PROMPTS * EACH):
        info = PngInfo()
        settings = {"version": "0", "model": "m", "prompt": f"prompt {seed // EACH}", "seed": seed}
        info.add_text("rmd", json.dumps(settings))
        Image.effect_noise((24, 24), 80).convert("RGB").save(home / "pictures" / f"{seed}.png", pnginfo=info)


def arguments(home: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments of `rmd` that score the pictures one by one."""
    return [
        "eval", "images", str(home / "pictures"), "--metrics", ",".join(METRICS), "--weights", str(home / "weights"),
        "--out", str(out), "--batch-size", "1", "--device", "cpu", *more,
    ]  # fmt: skip
