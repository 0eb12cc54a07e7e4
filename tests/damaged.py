"""Changes to the files of a saved pipeline, and the check that RMD refuses the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmd.common.errors import RMDError
from rmd.models import load_backbone

STEM, TEXT = "diffusion_pytorch_model.safetensors", "model.safetensors"
SPY = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n\nclass X: pass\n"
"""A module that leaves a file named `ran` beside it when it is imported."""
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 10\n".encode()
DAMAGED = {
    "pointer": (POINTER, r"is a git-LFS pointer and not the file itself: run `git lfs pull`"),
    "empty": (b"", "is empty: download it again"),
    "page": (b"<!DOCTYPE html><html>404</html>", "is a web page and not weights"),
    "cut": (None, "is not a complete safetensors file"),
    "noise": (bytes(range(256)), "is not a complete safetensors file"),
}
"""Contents of damaged weight files (None: the file without its end), and the errors that they cause."""


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit(path: Path, **changes: Any) -> None:
    """Set keys in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, sentence: str) -> None:
    """Assert that a pipeline cannot be loaded, with an error that matches a regular expression."""
    with pytest.raises(RMDError, match=sentence):
        load_backbone(folder)
