"""Saved teachers: half precision on disk, and float32 wherever they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from families import TINY
from torch import nn

from research.scenes.record import save_halved


def test_what_is_written_in_half_precision_is_loaded_in_float32_by_plain_diffusers(tmp_path: Path) -> None:
    for family, build in TINY.items():
        pipe = build().pipe
        folder = save_halved(tmp_path / family, "teacher", pipe, pipe.components.values())
        texts = [path.read_text(encoding="utf-8") for path in folder.glob("text_encoder*/config.json")]
        assert {json.loads(text)["dtype"] for text in texts} == {"float32"}
        stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        loaded = DiffusionPipeline.from_pretrained(folder)
        parts = [part for part in loaded.components.values() if isinstance(part, nn.Module)]
        assert {part.dtype for part in parts} == {torch.float32}
        assert stored < 3.5 * sum(p.numel() for part in parts for p in part.parameters())
