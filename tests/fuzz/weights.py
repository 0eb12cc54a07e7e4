"""Ways of damaging files of weights (see `mutations.py`)."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzz.mutations import FILE, Mutation, swap, utf16
from safetensors.torch import load_file, save_file


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    metadata = _header(path)[0].get("__metadata__")
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def not_finite(path: Path, rng: random.Random) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice([name for name in sorted(tensors) if tensors[name].is_floating_point()])
        tensors[name].view(-1)[0] = rng.choice((math.nan, math.inf, -math.inf))

    _edit_weights(path, change)


def missing_tensor(path: Path, rng: random.Random) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[rng.choice(sorted(tensors))]

    _edit_weights(path, change)


def extra_tensor(path: Path, rng: random.Random) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[rng.choice(("extra", "unet.extra.lora_A.weight", "", "a/../b"))] = torch.zeros(2, 2)

    _edit_weights(path, change)


def wrong_shape(path: Path, rng: random.Random) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        shape = tuple(tensors[name].shape)
        tensors[name] = torch.zeros(rng.choice(((*shape, 3), tuple(side + 1 for side in shape) or (7,), (0,))))

    _edit_weights(path, change)


def renamed_tensor(path: Path, rng: random.Random) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        tensors[f"{name}x"] = tensors.pop(name)

    _edit_weights(path, change)


def another_dtype(path: Path, rng: random.Random) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        tensors[name] = tensors[name].to(rng.choice((torch.int8, torch.float64, torch.float16, torch.bool)))

    _edit_weights(path, change)


def no_tensors(path: Path, rng: random.Random) -> None:
    save_file({}, path)


def huge_header(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(struct.pack("<Q", rng.choice((2**63, 2**40, 10**8, len(content)))) + content[8:])


def wild_header(path: Path, rng: random.Random) -> None:
    """Write a header with arbitrary offsets, shapes and metadata."""
    header, rest = _header(path)
    name = rng.choice([name for name in sorted(header) if name != "__metadata__"])
    key = rng.choice(("data_offsets", "shape", "dtype"))
    header[name][key] = rng.choice(([0, 2**60], [-1, 5], [5, 0], "F33", [2**40], None, []))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def wild_metadata(path: Path, rng: random.Random) -> None:
    """Change the metadata of a LoRA file, which say which layers are adapted."""
    tensors = load_file(path)
    values = ("", "5", "[]", "{", '{"unet.r": "x"}', '{"unet.r": -1}', "null", "[" * 20_000, '{"unet.nonsense": 1}')
    save_file(tensors, path, metadata={"format": "pt", "lora_adapter_metadata": rng.choice(values)})


WEIGHTS = {
    **{name: FILE[name] for name in FILE if name not in ("twice", "utf-16")},
    "utf-16": Mutation(utf16, fatal=True),
    "swapped": Mutation(swap, fatal=True),
    "not-finite": Mutation(not_finite, fatal=True),
    "missing-tensor": Mutation(missing_tensor, fatal=True),
    "extra-tensor": Mutation(extra_tensor),
    "wrong-shape": Mutation(wrong_shape, fatal=True),
    "renamed-tensor": Mutation(renamed_tensor, fatal=True),
    "another-dtype": Mutation(another_dtype),
    "no-tensors": Mutation(no_tensors, fatal=True),
    "huge-header": Mutation(huge_header, fatal=True),
    "wild-header": Mutation(wild_header, fatal=True),
}
ADAPTER = {**WEIGHTS, "wild-metadata": Mutation(wild_metadata)}
