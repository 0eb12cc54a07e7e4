"""A stand-in for an accelerator: tensors on the device "standin" compute on the CPU, and refuse those that lie there.

What a GPU would refuse fails on it, too: an operation on tensors of two devices, numpy on one's own. It shows that
nothing is left behind or fetched by mistake; it says nothing of speed, memory or a kernel's rounding. With
RMD_TEST_DEVICE=cuda in the environment the same tests use a real GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Module:
    """The module that torch expects of a kind of device; it reports no devices, so that nothing else looks for one."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return False

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


STAND_IN = "RMD_TEST_DEVICE" not in os.environ
if STAND_IN:  # torch takes one accelerator in a process
    _setup_privateuseone_for_python_backend("standin", _Module(), _Hook())
DEVICE = torch.device(os.environ.get("RMD_TEST_DEVICE", "standin"), 0)
aten = torch.ops.aten
_MOVES = (aten.copy_.default, aten._to_copy.default)
_MATH = 0


class OnDevice(Tensor):
    """A tensor that says it is on `DEVICE`; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            return args[0].held.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "__set__" and func.__self__ is Tensor.data:
            args[0].held = args[1].held
        return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held!r})"


class _Factories(TorchDispatchMode):
    """Sees the operations that have no tensor of the device among their arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """The device, for the time of the block."""
    if not STAND_IN:
        with torch.backends.cudnn.flags(allow_tf32=False):  # ten bits of a product would hide an error
            yield DEVICE
        return
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) then comes by here
    try:
        with _Factories():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with its tensors changed; torch's own tree_map takes longer than what is computed here."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)([_each(change, item) for item in value])
    return {key: _each(change, item) for key, item in value.items()} if isinstance(value, dict) else value


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if func is aten._fused_sdp_choice.default:
        return _MATH
    tensors: list[Tensor] = []

    def held(value: Tensor) -> Tensor:
        tensors.append(value)
        return value.held if isinstance(value, OnDevice) else value

    held_args, held_kwargs = _each(held, (args, kwargs))
    here = [value for value in tensors if isinstance(value, OnDevice)]
    wanted = kwargs.get("device")
    asked = wanted is not None and torch.device(wanted).type == DEVICE.type
    if not here and not asked:
        return func(*args, **kwargs)
    strangers = [value for value in tensors if not isinstance(value, OnDevice) and value.ndim > 0]
    indexed = func is aten.index.Tensor and isinstance(args[0], OnDevice)  # a GPU takes indices from the CPU
    if here and strangers and not indexed and func not in _MOVES:
        raise RuntimeError(f"{func} of tensors on {DEVICE} and on the CPU, of shape {tuple(strangers[0].shape)}")
    if asked:
        held_kwargs["device"] = torch.device("cpu")
    result = func(*held_args, **held_kwargs)
    if wanted is not None and not asked:
        return result  # brought to the CPU
    if func is aten.copy_.default and not isinstance(args[0], OnDevice):
        return args[0]
    wrapped = _each(lambda value: OnDevice(value) if type(value) is Tensor else value, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped
