"""The tests' stand-in for an accelerator: it refuses what a GPU refuses, and computes the rest."""

from __future__ import annotations

import pytest
import torch
from accelerator import accelerator


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    with accelerator() as device:
        there, here = torch.ones(2, device=device), torch.ones(2)
        with pytest.raises(RuntimeError, match="on standin:0 and on the CPU"):
            there + here
        with pytest.raises(RuntimeError, match="on standin:0 and on the CPU"):
            here[torch.zeros(1, dtype=torch.long, device=device)]
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert (there * torch.tensor(2.0)).tolist() == [2.0, 2.0]
        there.data = there + 1
        assert there[torch.tensor([0])].cpu().tolist() == [2.0]
