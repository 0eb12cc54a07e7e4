"""A LoRA student's adapter: writes its file, and loads it onto a pipeline, alone or beside other adapters.

The pipeline may already carry other students and style adapters, be compiled, or be quantised. The student becomes
active together with the styles that were active before; `check_active` notices if something has switched it off since.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import hf_hub_download
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from pydantic_core import from_json, to_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.common.files import parse_model
from rmd.common.typed import Strict
from rmd.core.finite import check_tensors
from rmd.models.base import Backbone
from rmd.models.hub import check_weights, first_line

LORA_NAME = "pytorch_lora_weights.safetensors"
ADAPTER = "rmd"
"""Name of a loaded LoRA student among a network's adapters, if it is not given another one."""
_HEADER_KEY = "lora_adapter_metadata"
"""Key in the file's header under which diffusers looks for PEFT's settings."""


class LoraHeader(Strict):
    """The settings of an adapter. PEFT's LoraConfig has more, which students do not use and which are refused."""

    r: Annotated[int, Field(gt=0)]
    lora_alpha: Annotated[float, Field(gt=0)]
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]


def lora_file(source: str) -> Path:
    """Return the adapter file of a LoRA student; raise OSError if it cannot be obtained."""
    return Path(source) / LORA_NAME if Path(source).exists() else Path(hf_hub_download(source, LORA_NAME))


def write_lora(backbone: Backbone, state: dict[str, Tensor], metadata: dict[str, Any], folder: Path) -> None:
    """Write an adapter's tensors in the layout of diffusers, with its settings in the file's header.

    Args:
        state: tensors by their names in the denoiser.
        metadata: the values of a `LoraHeader`.
    """
    part = backbone.denoiser_name
    values = LoraHeader.model_validate_json(json.dumps(metadata)).model_dump(mode="json")
    header = {"format": "pt", _HEADER_KEY: json.dumps({f"{part}.{name}": value for name, value in values.items()})}
    tensors = {f"{part}.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / LORA_NAME, metadata=header)


def apply_lora_file(
    backbone: Backbone, source: str | Path, name: str = ADAPTER, *, others: Collection[str] = ()
) -> None:
    """Load the adapter of a folder or repository onto a pipeline.

    Adapters that are active there stay active, with their weights. The same student may be loaded again.

    Args:
        name: the adapter's name on the pipeline.
        others: names of other students, which become inactive.

    Raises:
        RMDError: the adapter was made for another network, its file is not a student's, or it holds values that are not
            finite; or the pipeline carries another student of this name, or adapters that are fused.
    """
    network = _network(backbone)
    try:
        path = lora_file(str(source))
        header = _read_header(path, f"{backbone.denoiser_name}.")
        _check_file(backbone, path, header)
        _check_not_fused(network, name)
        if name not in getattr(network, "peft_config", {}):
            before = _active(network)
            _load(backbone, str(source), header, name)
            _check_all_layers(network, path, name)
            _activate(network, [each for each in before if each not in others], name)
        elif not _is_same(backbone, path, name):
            raise RMDError(
                f"the pipeline carries another student of the name {name!r} already: give {source} another name, or "
                "remove that one by unload_student"
            )
        else:
            activate(backbone, name, others=others)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RMDError(f"the LoRA of {source} does not fit this base: {first_line(error)}") from error


def activate(backbone: Backbone, name: str, *, others: Collection[str] = ()) -> None:
    """Make a student's adapter active beside those that are active, but for other students."""
    network = _network(backbone)
    _activate(network, [each for each in _active(network) if each not in (name, *others)], name)


def remove_adapter(backbone: Backbone, name: str) -> None:
    """Remove a student's adapter from the network; nothing happens if it is not there."""
    _take_off(_network(backbone), name)


def check_active(backbone: Backbone, name: str = ADAPTER) -> None:
    """Check that the adapter of a LoRA student is active in every layer that it was put on; warn if it is scaled.

    Raises:
        RMDError: it was deleted, disabled, or left out when other adapters were activated or fused.
    """
    layers = [layer for layer in _tuned(_network(backbone)) if isinstance(layer, LoraLayer)]
    ours = [layer for layer in layers if name in layer.scaling]
    if not ours:
        raise RMDError(
            f"the student's adapter {name!r} is not on the pipeline any more: put it on again with load_student, or "
            "fuse it for good with `rmd export --to fused`"
        )
    for layer in ours:  # checked first: no activation helps in layers that other adapters are fused into
        if layer.merged and name not in layer.merged_adapters:
            raise RMDError(
                f"the adapters {', '.join(layer.merged_adapters)} were fused without the student's, which is therefore "
                "off: call unfuse_lora(), or fuse the student's with them"
            )
    for layer in ours:
        if not layer.merged and layer.disable_adapters:
            raise RMDError("the pipeline's adapters are disabled, and the student with them: call enable_lora()")
        if not layer.merged and name not in layer.active_adapters:
            active = f", but {', '.join(layer.active_adapters)} is" if layer.active_adapters else ""
            raise RMDError(
                f"the student's adapter {name!r} is not active{active}: activate it beside the others with "
                f"set_student({name!r})"
            )
    scales = [layer.scaling[name] * layer.r[name] / layer.lora_alpha[name] for layer in ours]
    worst = max(scales, key=lambda scale: abs(scale - 1))
    if abs(worst - 1) > 1e-6:
        warnings.warn(
            f"the student's adapter is scaled by {worst:g}, but was distilled for a scale of 1: samples will differ",
            stacklevel=3,
        )


def _network(backbone: Backbone) -> nn.Module:
    """Return the denoiser itself, without the wrapper of `torch.compile`."""
    network: nn.Module = getattr(backbone.denoiser, "_orig_mod", backbone.denoiser)
    return network


def _tuned(network: nn.Module) -> Iterator[BaseTunerLayer]:
    """Yield the layers that carry adapters."""
    return (module for module in network.modules() if isinstance(module, BaseTunerLayer))


def _active(network: nn.Module) -> list[str]:
    """Return the names of the active adapters, in order."""
    return list(
        dict.fromkeys(name for layer in _tuned(network) if not layer.disable_adapters for name in layer.active_adapters)
    )


def _activate(network: nn.Module, others: list[str], name: str) -> None:
    """Activate a student's adapter and these others, and no more; the weights that the user gave them stay."""
    for layer in _tuned(network):
        layer.enable_adapters(True)
        layer.set_adapter([*others, name])  # also makes their weights trainable
    for path, parameter in network.named_parameters():
        if f".{name}." in path:
            parameter.requires_grad_(False)


def _check_not_fused(network: nn.Module, name: str) -> None:
    """Raise RMDError if other adapters are fused into the network."""
    for layer in _tuned(network):
        if layer.merged and name not in layer.merged_adapters:
            raise RMDError(
                f"the adapters {', '.join(layer.merged_adapters)} are fused into this pipeline, which switches others "
                "off: call unload_lora_weights() to keep their effect, or unfuse_lora(), before the student is put on"
            )


def _read_header(path: Path, prefix: str) -> LoraHeader | None:
    """Return the adapter settings in the file's header; None for other programs' layouts, which use tensor names."""
    check_weights(path)
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_HEADER_KEY)
    if text is None:
        return None
    where = f"{path} ({_HEADER_KEY})"
    try:
        values = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise RMDError(f"{where} is not valid JSON: {error}") from error
    if isinstance(values, dict):
        values = {key.removeprefix(prefix): value for key, value in values.items()}
    return parse_model(to_json(values), LoraHeader, where)


def _check_file(backbone: Backbone, path: Path, header: LoraHeader | None) -> None:
    """Check that every tensor belongs to a layer of the network; diffusers would leave others out silently.

    Raises:
        ValueError: a layer does not exist, or has another size.
        RMDError: a tensor is not finite, or is not one of a student's.
    """
    prefix, layers = f"{backbone.denoiser_name}.", _layers(_network(backbone))
    with safe_open(path, "pt") as file:
        check_tensors(((key, file.get_tensor(key)) for key in file.keys()), str(path))  # noqa: SIM118
        if header is None:
            return
        held: dict[str, set[str]] = {"A": set(), "B": set()}
        for key in file.keys():  # noqa: SIM118
            name, mark, rest = key.removeprefix(prefix).rpartition(".lora_")
            if not key.startswith(prefix) or not mark or rest not in ("A.weight", "B.weight"):
                raise RMDError(f"{path} holds {key}, which is not one of a student's tensors: save the student again")
            if name not in layers:
                raise ValueError(f"it has no layer {name}")
            stored, wanted = file.get_slice(key).get_shape(), _shapes(layers[name], header.r)[rest[0]]
            if rest == "A.weight" and stored[1:] != wanted[1:]:
                raise ValueError(f"{name} takes {_shown(wanted[1:])} numbers, not {_shown(stored[1:])}")
            if stored != wanted:
                raise ValueError(f"{key} is {_shown(stored)}, not {_shown(wanted)}")
            held[rest[0]].add(name)
    ends = tuple(f".{target}" for target in header.target_modules)
    adapted = {name for name in layers if f".{name}".endswith(ends)}
    for kind, names in held.items():
        if missing := sorted(adapted - names):
            raise ValueError(f"it lacks the tensor {missing[0]}.lora_{kind}.weight")


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that may carry adapters, by their names without adapters."""
    layers: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layers[name] = layer
    return layers


def _shapes(layer: nn.Module, rank: int) -> dict[str, list[int]]:
    """Return the shapes of an adapter's two matrices; a quantised layer's own weight may have any shape."""
    if isinstance(layer, nn.Conv2d):
        return {"A": [rank, *layer.weight.shape[1:]], "B": [layer.out_channels, rank, 1, 1]}
    assert isinstance(layer, nn.Linear)
    return {"A": [rank, layer.in_features], "B": [layer.out_features, rank]}


def _shown(shape: Sequence[int]) -> str:
    """Return a shape as text, such as 4x16."""
    return "x".join(str(side) for side in shape)


def _load(backbone: Backbone, source: str, header: LoraHeader | None, name: str) -> None:
    """Put the adapter on the pipeline, with diffusers' own loader if the pipeline has one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a style adapter stays
        if hasattr(backbone.pipe, "load_lora_weights"):
            backbone.pipe.load_lora_weights(source, weight_name=LORA_NAME, adapter_name=name, use_safetensors=True)
        elif header is not None:
            _inject(backbone, source, header, name)
        else:
            raise ValueError(f"its header has no {_HEADER_KEY}")


def _inject(backbone: Backbone, source: str, header: LoraHeader, name: str) -> None:
    """Load an adapter as `load_lora_weights` does, for pipelines whose LoRAs diffusers does not support."""
    network = _network(backbone)
    config = LoraConfig(r=header.r, lora_alpha=header.lora_alpha, target_modules=list(header.target_modules))  # type: ignore[arg-type]  # annotated int, but PEFT only divides by it
    inject_adapter_in_model(config, network, adapter_name=name)
    outcome: Any = set_peft_model_state_dict(network, _tensors(backbone, lora_file(source)), adapter_name=name)
    if outcome.unexpected_keys:
        _take_off(network, name)
        raise ValueError(f"{outcome.unexpected_keys[0]} is not in the network")


def _check_all_layers(network: nn.Module, path: Path, name: str) -> None:
    """Remove the adapter and raise ValueError if fewer layers carry it than the file has matrices for."""
    with safe_open(path, "pt") as file:
        count = sum(".lora_A." in key or ".lora_down." in key for key in file.keys())  # noqa: SIM118
    carrying = [layer for layer in _tuned(network) if isinstance(layer, LoraLayer) and name in layer.scaling]
    if len(carrying) != count:
        _take_off(network, name)
        raise ValueError(f"{len(carrying)} of the layers that its header names are here, but it has {count}")


def _take_off(network: nn.Module, name: str) -> None:
    """Remove the adapter again, which leaves the pipeline as it was before."""
    for layer in _tuned(network):
        layer.delete_adapter(name)
    configs: Any = getattr(network, "peft_config", {})
    configs.pop(name, None)


def _tensors(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter's file by their names in the denoiser."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {name.removeprefix(f"{backbone.denoiser_name}."): file.get_tensor(name) for name in names}


def _is_same(backbone: Backbone, path: Path, name: str) -> bool:
    """Return whether the adapter on the pipeline has exactly the tensors of the file."""
    there = get_peft_model_state_dict(_network(backbone), adapter_name=name)
    ours = _tensors(backbone, path)
    return there.keys() == ours.keys() and all(
        bool((tensor.cpu() == ours[key].to(tensor.dtype)).all()) for key, tensor in there.items()
    )
