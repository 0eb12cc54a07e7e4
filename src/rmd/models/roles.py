"""Student, teacher and fake score behind one API: one frozen base with two adapters, or three full copies.

`roles.use(role)` yields the network of a role. `roles.backward(role, loss)` is the only way to a gradient: it
checks that the role's own parameters, and no others, received one, because switching adapters can drop gradients
silently.

A network in half precision keeps float32 masters of what is trained: small updates would be rounded away in bfloat16
(a learning rate of 1e-5 changes no weight above 0.01). Optimisers and averages see the masters; `sync` writes them
into the network.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rmd.common.errors import RMDError

Role = Literal["student", "teacher", "fake"]
ROLES: tuple[Role, ...] = ("student", "teacher", "fake")
TRAINED: tuple[Literal["student", "fake"], ...] = ("student", "fake")


class GradientRoutingError(RuntimeError):
    """A gradient went where it must not go, or did not arrive; a programming error, never a user's."""


class Roles(ABC):
    """The three networks of a distillation."""

    mode: Literal["lora", "full"]
    _masters: dict[Role, dict[str, nn.Parameter]]

    @abstractmethod
    def use(self, role: Role) -> AbstractContextManager[nn.Module]:
        """Context manager that yields the network of a role."""

    def fused(self, role: Role) -> AbstractContextManager[nn.Module]:
        """As `use`, for passes without gradient: what adapters would cost at every call is paid once."""
        return self.use(role)

    @abstractmethod
    def in_network(self, role: Role) -> dict[str, nn.Parameter]:
        """The parameters that the network computes with, by a name that is the same for student and fake."""

    @abstractmethod
    def frozen(self) -> list[nn.Parameter]:
        """Parameters that no update may touch."""

    @abstractmethod
    def attach(self, name: str, module: nn.Module) -> None:
        """Make a module part of the fake score, under a name in its network: trained and saved with it."""

    @contextmanager
    def held(self, role: Role) -> Iterator[None]:
        """What a role's network computes within the block leaves no gradient on its parameters, only on its inputs."""
        parameters = list(self.in_network(role).values())
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    @abstractmethod
    def networks(self) -> list[tuple[nn.Module, bool]]:
        """Every network there is once, and whether all of its parameters are trained."""

    def find_parameters(self) -> None:
        """Take hold of the networks' parameters anew, after something has replaced them; masters are made from them."""
        self._masters = {role: {n: _master(p) for n, p in self.in_network(role).items()} for role in TRAINED}

    def named_trainable(self, role: Role) -> dict[str, nn.Parameter]:
        """What an optimiser updates, at least float32, by the same names; none for the teacher."""
        return self._masters.get(role, {})

    def trainable(self, role: Role) -> list[nn.Parameter]:
        return list(self.named_trainable(role).values())

    def state(self, role: Role) -> dict[str, Tensor]:
        """Detached trainable tensors of a role, by name."""
        return {name: parameter.detach() for name, parameter in self.named_trainable(role).items()}

    @torch.no_grad()
    def load_state(self, role: Role, state: dict[str, Tensor]) -> None:
        """Copy tensors into a role; RMDError when names or shapes are not this network's."""
        own = self.named_trainable(role)
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise RMDError(f"the weights for the {role} belong to another network or another LoRA rank")
        for name, parameter in own.items():
            parameter.copy_(state[name])
        if role != "teacher":
            self.sync(role)

    @torch.no_grad()
    def sync(self, role: Literal["student", "fake"]) -> None:
        """Write the masters into the network; to be called after every step of the optimiser."""
        for parameter, master in self._copies(role):
            parameter.copy_(master)

    def zero_grad(self) -> None:
        """Drop every gradient, so that the next check sees those of one backward pass."""
        for role in TRAINED:
            for parameter in self.in_network(role).values():
                parameter.grad = None
            for _, master in self._copies(role):
                master.grad = None

    def backward(self, role: Literal["student", "fake"], loss: Tensor, *, more: bool = False) -> None:
        """Back-propagate with the role active, check the routing, and add the gradients to those of the masters.

        Args:
            more: another micro-batch of the same update follows; gradients may still be on their way.

        Raises:
            GradientRoutingError: another role or the frozen base got a gradient, or one of the role's got none.
        """
        with self.use(role):
            loss.backward()
        if not more:
            self.check_gradients(role)
        for parameter, master in self._copies(role):
            if parameter.grad is not None:
                gradient = parameter.grad.to(master.dtype)
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    def check_gradients(self, role: Literal["student", "fake"]) -> None:
        """Assert that `role`, and nothing else, holds gradients (DESIGN invariant: one frozen base)."""
        own = self.in_network(role)
        missing = [name for name, parameter in own.items() if parameter.grad is None]
        if missing:
            raise GradientRoutingError(
                f"{len(missing)} of {len(own)} parameters of the {role} got no gradient ({missing[0]}): "
                "was another role active?"
            )
        other: Role = "fake" if role == "student" else "student"
        strays = [name for name, parameter in self.in_network(other).items() if parameter.grad is not None]
        if strays:
            raise GradientRoutingError(f"the {role}'s update put gradients on the {other} ({strays[0]})")
        if any(parameter.grad is not None for parameter in self.frozen()):
            raise GradientRoutingError(f"the {role}'s update put gradients on frozen weights")

    def _copies(self, role: Literal["student", "fake"]) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(parameter, master) where they are two."""
        masters = self._masters[role]
        return [(p, masters[name]) for name, p in self.in_network(role).items() if p is not masters[name]]


class FullRoles(Roles):
    """Three copies of the network: the teacher frozen, student and fake score trained in full."""

    mode = "full"

    def __init__(self, denoiser: nn.Module) -> None:
        self._modules: dict[Role, nn.Module] = {
            "teacher": denoiser.requires_grad_(False).eval(),
            "student": deepcopy(denoiser).requires_grad_(True),
            "fake": deepcopy(denoiser).requires_grad_(True),
        }
        self.find_parameters()

    @contextmanager
    def use(self, role: Role) -> Iterator[nn.Module]:
        yield self._modules[role]

    def in_network(self, role: Role) -> dict[str, nn.Parameter]:
        return {} if role == "teacher" else self._trained[role]

    def find_parameters(self) -> None:
        self._trained: dict[Role, dict[str, nn.Parameter]] = {
            role: dict(self._modules[role].named_parameters()) for role in TRAINED
        }
        self._frozen = list(self._modules["teacher"].parameters())
        super().find_parameters()

    def frozen(self) -> list[nn.Parameter]:
        return self._frozen

    def attach(self, name: str, module: nn.Module) -> None:
        self._modules["fake"].add_module(name, module)
        self.find_parameters()

    def networks(self) -> list[tuple[nn.Module, bool]]:
        return [(module, role != "teacher") for role, module in self._modules.items()]


class LoraRoles(Roles):
    """One frozen base with the adapters "student" and "fake"; the teacher is the base with adapters off."""

    mode = "lora"

    def __init__(self, denoiser: nn.Module, *, targets: Sequence[str], rank: int, alpha: float, seed: int) -> None:
        """Put two adapters on the linear layers and convolutions whose names end in one of `targets`.

        Adapters start as the identity (their second matrix is zero), so all three roles start equal. The global
        generator is left as it was found.
        """
        self._base = denoiser.requires_grad_(False).eval()
        # PEFT draws on the CPU before it moves an adapter; torch.manual_seed would also reseed the accelerators
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are wanted
            torch.default_generator.manual_seed(seed)
            for name in TRAINED:
                config = LoraConfig(
                    r=rank,
                    lora_alpha=alpha,  # type: ignore[arg-type]  # annotated int, but only ever divided by the rank
                    target_modules=list(targets),
                    lora_dropout=0.0,
                )
                try:
                    inject_adapter_in_model(config, self._base, adapter_name=name)
                except ValueError as error:  # PEFT raises this for layers that it cannot adapt, and if it finds none
                    raise RMDError(f"adapters cannot be put on the teacher's network: {error}") from error
        self._layers = [module for module in self._base.modules() if isinstance(module, BaseTunerLayer)]
        self.find_parameters()
        self._switch("teacher")

    @contextmanager
    def use(self, role: Role) -> Iterator[nn.Module]:
        previous = self._active
        self._switch(role)
        try:
            yield self._base
        finally:
            self._switch(previous)

    @contextmanager
    def fused(self, role: Role) -> Iterator[nn.Module]:
        """The base with a role's adapter merged into copies of its weights, which the block works with.

        In half precision the sum is rounded to it, as in a student exported with its adapter merged. Weights that are
        spread over processes, or quantised, are not merged: their adapter is used as ever.
        """
        fixed = any(isinstance(w := layer.weight, DTensor) or not w.is_floating_point() for layer in self._layers)
        if role == "teacher" or fixed:
            with self.use(role) as network:
                yield network
            return
        weights = [layer.weight for layer in self._layers]
        kept = [weight.data for weight in weights]
        merged = [_merged(layer, role) for layer in self._layers]
        try:
            for weight, value in zip(weights, merged, strict=True):
                weight.data = value
            with self.use("teacher") as network:
                yield network
        finally:
            for weight, value in zip(weights, kept, strict=True):
                weight.data = value

    def in_network(self, role: Role) -> dict[str, nn.Parameter]:
        return {} if role == "teacher" else self._trained[role]

    def frozen(self) -> list[nn.Parameter]:
        return self._frozen

    def attach(self, name: str, module: nn.Module) -> None:
        self._base.add_module(name, nn.ModuleDict({"fake": module}))  # found by this mark, as adapters are
        self.find_parameters()

    def networks(self) -> list[tuple[nn.Module, bool]]:
        return [(self._base, False)]

    def find_parameters(self) -> None:
        self._trained: dict[Role, dict[str, nn.Parameter]] = {name: self._adapter(name) for name in TRAINED}
        ours = {id(p) for role in TRAINED for p in self._trained[role].values()}
        self._frozen = [p for p in self._base.parameters() if id(p) not in ours]
        for role in TRAINED:
            for parameter in self._trained[role].values():
                parameter.requires_grad_(True)  # PEFT leaves it on for the adapter that was added last alone
        super().find_parameters()

    def _adapter(self, name: str) -> dict[str, nn.Parameter]:
        mark = f".{name}."
        return {full.replace(mark, "."): p for full, p in self._base.named_parameters() if mark in full}

    def _switch(self, role: Role) -> None:
        """Choose whose adapter computes.

        What PEFT's `enable_adapters` and `set_adapter` choose, and no more: they also turn requires_grad off for the
        other adapters, which drops the gradients of a graph built before the switch, and walk through all of a layer's
        modules, which for SDXL took a third of an iteration.
        """
        self._active: Role = role
        chosen: dict[str, Any] = {"_disable_adapters": True}
        if role != "teacher":
            chosen = {"_disable_adapters": False, "_active_adapter": [role]}
        for layer in self._layers:
            vars(layer).update(chosen)  # past a module's slow setattr


@torch.no_grad()
def _merged(layer: Any, role: Role) -> Tensor:
    """W + s B A of an adapted layer, summed in at least float32, in the precision of W.

    A convolution's A has its kernel and its B is 1x1, so that their product as matrices is its kernel's.
    """
    weight, a, b = layer.weight, layer.lora_A[role].weight, layer.lora_B[role].weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    flat, second, first = (tensor.to(wide).flatten(1) for tensor in (weight, b, a))
    found = torch.addmm(flat, second, first, alpha=layer.scaling[role])
    return found.view_as(weight).to(weight.dtype)


def _check_trainable(denoiser: nn.Module, mode: Literal["lora", "full"], targets: Sequence[str]) -> None:
    """Raise RMDError if a network's weights are not plain ones that a mode can train or put adapters on."""
    if hasattr(denoiser, "_orig_mod"):
        raise RMDError(
            "the teacher's network is compiled (torch.compile), and adapters and copies need it as it was: give the "
            "pipeline before it is compiled"
        )
    carried = next((layer for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)), None)
    if carried is not None:
        names = ", ".join(sorted({str(name) for name in carried.active_adapters}))
        raise RMDError(
            f"the teacher's network carries an adapter ({names}): merge it with pipe.fuse_lora() and "
            "pipe.unload_lora_weights(), or leave it out"
        )
    quantised = next((name for name, p in denoiser.named_parameters() if _is_quantised(p)), None)
    if quantised is not None and mode == "full":
        raise RMDError(
            f"the teacher's weights are quantised ({quantised}), and roles.mode=full trains all of them: load it "
            "without quantisation, or set roles.mode to lora"
        )
    ends = tuple(f".{target}" for target in targets)
    if quantised is not None and f".{quantised.rpartition('.')[0]}".endswith(ends):
        layer: Any = denoiser.get_submodule(quantised.rpartition(".")[0])
        if type(layer) in (nn.Linear, nn.Conv2d) and not layer.weight.is_floating_point():
            raise RMDError(
                f"the teacher's weight {quantised} is packed into whole numbers in a plain layer, which an adapter "
                "cannot compute with: quantise it with bitsandbytes, which has layers of its own, or not at all"
            )


def _is_quantised(parameter: nn.Parameter) -> bool:
    """Return whether a parameter holds numbers packed for quantisation, not those that are computed with."""
    kinds = (type(parameter), type(parameter.data))
    return not parameter.is_floating_point() or any(kind.__module__.startswith(_QUANTISING) for kind in kinds)


_QUANTISING = ("torchao.", "optimum.", "bitsandbytes.")
"""Packages whose tensors report a floating-point dtype although they are packed."""


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if torch.promote_types(parameter.dtype, torch.float32) == parameter.dtype:
        return parameter
    return nn.Parameter(parameter.detach().float())


def build_roles(
    denoiser: nn.Module,
    *,
    mode: Literal["lora", "full"],
    targets: Sequence[str],
    rank: int = 64,
    alpha: float = 64.0,
    seed: int = 0,
) -> Roles:
    """Return the roles of either mode for a teacher's network, and take over the network.

    Raises:
        RMDError: the network is compiled, already carries an adapter, or is quantised in a way that the mode cannot
            train.
    """
    _check_trainable(denoiser, mode, targets)
    if mode == "full":
        return FullRoles(denoiser)
    return LoraRoles(denoiser, targets=targets, rank=rank, alpha=alpha, seed=seed)
