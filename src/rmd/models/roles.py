"""Student, teacher and fake score behind one interface: one frozen base with two adapters, or three full copies.

`roles.use(role)` yields the network of a role. Gradients are computed only by `roles.backward(role, loss)`, which
checks that all of the role's parameters and no others received one, because switching adapters can drop gradients
silently.

In half precision, trained parameters have float32 master copies: bfloat16 would round small updates away (a learning
rate of 1e-5 changes no weight above 0.01). Optimisers and averages work on the masters; `sync` copies them into the
network.
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
from rmd.models.trainable import check_trainable

Role = Literal["student", "teacher", "fake"]
ROLES: tuple[Role, ...] = ("student", "teacher", "fake")
TRAINED: tuple[Literal["student", "fake"], ...] = ("student", "fake")


class GradientRoutingError(RuntimeError):
    """A parameter received a gradient that it must not receive, or missed one: a programming error, never a user's."""


class Roles(ABC):
    """The three networks of a distillation: student, teacher and fake score."""

    mode: Literal["lora", "full"]
    _trained: dict[Role, dict[str, nn.Parameter]]
    _frozen: list[nn.Parameter]
    _masters: dict[Role, dict[str, nn.Parameter]]

    @abstractmethod
    def use(self, role: Role) -> AbstractContextManager[nn.Module]:
        """Return a context manager that yields the network of a role."""

    def fused(self, role: Role) -> AbstractContextManager[nn.Module]:
        """Like `use`, for passes without gradients: adapters are merged once, not computed at every call."""
        return self.use(role)

    def in_network(self, role: Role) -> dict[str, nn.Parameter]:
        """Return the trained parameters in a role's network, by names that student and fake score share."""
        return {} if role == "teacher" else self._trained[role]

    def frozen(self) -> list[nn.Parameter]:
        """Return the parameters that no update may change."""
        return self._frozen

    @abstractmethod
    def attach(self, name: str, module: nn.Module) -> None:
        """Add a module to the fake score's network under a name; it is trained and saved with the fake score."""

    @contextmanager
    def held(self, role: Role) -> Iterator[None]:
        """Within the block, a role's network passes gradients to its inputs but not to its parameters."""
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
        """Return each network once, and whether all of its parameters are trained."""

    def find_parameters(self) -> None:
        """Look the parameters up again after something has replaced them, and make new masters from them."""
        self._masters = {role: {n: _master(p) for n, p in self.in_network(role).items()} for role in TRAINED}

    def named_trainable(self, role: Role) -> dict[str, nn.Parameter]:
        """Return the parameters that an optimiser updates, at least float32, by name; none for the teacher."""
        return self._masters.get(role, {})

    def trainable(self, role: Role) -> list[nn.Parameter]:
        """Return the parameters of `named_trainable` without their names."""
        return list(self.named_trainable(role).values())

    def state(self, role: Role) -> dict[str, Tensor]:
        """Return the values of `named_trainable`, detached."""
        return {name: parameter.detach() for name, parameter in self.named_trainable(role).items()}

    @torch.no_grad()
    def load_state(self, role: Role, state: dict[str, Tensor]) -> None:
        """Copy tensors into a role; raise RMDError if their names or shapes are not those of this network."""
        own = self.named_trainable(role)
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise RMDError(f"the weights for the {role} belong to another network or another LoRA rank")
        for name, parameter in own.items():
            parameter.copy_(state[name])
        if role != "teacher":
            self.sync(role)

    @torch.no_grad()
    def sync(self, role: Literal["student", "fake"]) -> None:
        """Copy the masters into the network. Call it after every step of the optimiser."""
        for parameter, master in self._copies(role):
            parameter.copy_(master)

    def zero_grad(self) -> None:
        """Delete all gradients, so that the next check sees those of one backward pass only."""
        for role in TRAINED:
            for parameter in self.in_network(role).values():
                parameter.grad = None
            for _, master in self._copies(role):
                master.grad = None

    def backward(self, role: Literal["student", "fake"], loss: Tensor, *, more: bool = False) -> None:
        """Back-propagate with the role active, check which parameters got gradients, and add these to the masters'.

        Args:
            more: another micro-batch of the same update follows; gradients may be incomplete until the last.

        Raises:
            GradientRoutingError: another role or the frozen base got a gradient, or a parameter of the role got none.
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
        """Raise GradientRoutingError unless all of a role's parameters hold gradients, and no others do."""
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
        """Return the pairs of a parameter and its master, where the master is a separate tensor."""
        masters = self._masters[role]
        return [(p, masters[name]) for name, p in self.in_network(role).items() if p is not masters[name]]


class FullRoles(Roles):
    """Three copies of the network: a frozen teacher, and student and fake score with all parameters trained."""

    mode = "full"

    def __init__(self, denoiser: nn.Module, *, unread: Sequence[str] = ()) -> None:
        """Copy the network twice; layers that no gradient reaches (`unread`) keep the teacher's weights."""
        self._unread = tuple(f"{name}." for name in unread)
        self._modules: dict[Role, nn.Module] = {
            "teacher": denoiser.requires_grad_(False).eval(),
            "student": deepcopy(denoiser).requires_grad_(True),
            "fake": deepcopy(denoiser).requires_grad_(True),
        }
        self.find_parameters()

    @contextmanager
    def use(self, role: Role) -> Iterator[nn.Module]:
        yield self._modules[role]

    def find_parameters(self) -> None:
        named = {role: dict(self._modules[role].named_parameters()) for role in TRAINED}
        kept = [p for each in named.values() for name, p in each.items() if name.startswith(self._unread)]
        for parameter in kept:
            parameter.requires_grad_(False)
        self._trained = {
            role: {name: p for name, p in each.items() if not name.startswith(self._unread)}
            for role, each in named.items()
        }
        self._frozen = [*self._modules["teacher"].parameters(), *kept]
        super().find_parameters()

    def attach(self, name: str, module: nn.Module) -> None:
        self._modules["fake"].add_module(name, module)
        self.find_parameters()

    def networks(self) -> list[tuple[nn.Module, bool]]:
        return [(module, role != "teacher") for role, module in self._modules.items()]


class LoraRoles(Roles):
    """One frozen base with the adapters "student" and "fake"; the teacher is the base with its adapters off."""

    mode = "lora"

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        targets: Sequence[str],
        rank: int,
        alpha: float,
        seed: int,
        unread: Sequence[str] = (),
    ) -> None:
        """Put two adapters on the linear layers and convolutions whose names end in one of `targets`.

        Layers that no gradient reaches (`unread`, by their names) and those within them receive none.

        Adapters start as the identity (their second matrix is zero), so all three roles start equal. The state of the
        global random generator does not change.
        """
        self._base = denoiser.requires_grad_(False).eval()
        # PEFT draws on the CPU before it moves an adapter; torch.manual_seed would also reseed the accelerators.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are wanted
            torch.default_generator.manual_seed(seed)
            for name in TRAINED:
                config = LoraConfig(
                    r=rank,
                    lora_alpha=alpha,  # type: ignore[arg-type]  # annotated int, but only ever divided by the rank
                    target_modules=list(targets),
                    exclude_modules=_within(denoiser, unread),
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
        """Within the block, use the base with a role's adapter merged into copies of its weights.

        In half precision the sum is rounded to the weights' precision, as in an export with a merged adapter. Weights
        that are sharded or quantised are not merged: their adapters are computed as in `use`.
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

    def attach(self, name: str, module: nn.Module) -> None:
        # Its parameters are found by ".fake." in their names, as those of the adapter are.
        self._base.add_module(name, nn.ModuleDict({"fake": module}))
        self.find_parameters()

    def networks(self) -> list[tuple[nn.Module, bool]]:
        return [(self._base, False)]

    def find_parameters(self) -> None:
        self._trained = {name: self._adapter(name) for name in TRAINED}
        ours = {id(p) for role in TRAINED for p in self._trained[role].values()}
        self._frozen = [p for p in self._base.parameters() if id(p) not in ours]
        for role in TRAINED:
            for parameter in self._trained[role].values():
                parameter.requires_grad_(True)  # PEFT leaves it on only for the adapter that was added last
        super().find_parameters()

    def _adapter(self, name: str) -> dict[str, nn.Parameter]:
        mark = f".{name}."
        return {full.replace(mark, "."): p for full, p in self._base.named_parameters() if mark in full}

    def _switch(self, role: Role) -> None:
        """Activate the adapter of a role.

        PEFT's `enable_adapters` and `set_adapter` set the same attributes, but they also turn requires_grad off for the
        other adapters, which drops the gradients of a graph built before the switch, and they visit all modules of each
        layer, which took a third of an iteration for SDXL.
        """
        self._active: Role = role
        chosen: dict[str, Any] = {"_disable_adapters": True}
        if role != "teacher":
            chosen = {"_disable_adapters": False, "_active_adapter": [role]}
        for layer in self._layers:
            vars(layer).update(chosen)  # faster than nn.Module's setattr


@torch.no_grad()
def _merged(layer: Any, role: Role) -> Tensor:
    """Return W + s B A of an adapted layer, summed in at least float32 and rounded to the precision of W.

    For a convolution, A has the layer's kernel and B is 1x1, so that the product of both as matrices is the kernel.
    """
    weight, a, b = layer.weight, layer.lora_A[role].weight, layer.lora_B[role].weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    flat, second, first = (tensor.to(wide).flatten(1) for tensor in (weight, b, a))
    total = torch.addmm(flat, second, first, alpha=layer.scaling[role])
    return total.view_as(weight).to(weight.dtype)


def _within(network: nn.Module, names: Sequence[str]) -> list[str] | None:
    """Return the names of the modules with these names and of all modules within them; None if there are none."""
    starts = tuple(f"{name}." for name in names)
    found = [name for name, _ in network.named_modules() if f"{name}.".startswith(starts)] if starts else []
    return found or None


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """Return a float32 copy of a parameter, or the parameter itself if it is at least float32."""
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
    unread: Sequence[str] = (),
) -> Roles:
    """Return the roles of a mode for a teacher's network, which then belongs to them.

    Args:
        unread: names of layers that no gradient reaches, which are not trained (`Backbone.unread`).

    Raises:
        RMDError: the network is compiled, already carries an adapter, or is quantised in a way that the mode cannot
            train.
    """
    check_trainable(denoiser, mode, targets)
    if mode == "full":
        return FullRoles(denoiser, unread=unread)
    return LoraRoles(denoiser, targets=targets, rank=rank, alpha=alpha, seed=seed, unread=unread)
