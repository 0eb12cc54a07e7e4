"""Load a diffusers pipeline from a folder or the Hub, and refuse files that diffusers would accept silently.

Only safetensors files and plain configurations are read, so that nothing that is loaded can run code; and every network
gets exactly its own weights, or loading fails.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import HfApi, hf_hub_download
from transformers import PreTrainedModel

from rmd.common.errors import RMDError, located
from rmd.common.files import user_path
from rmd.models.folder import INDEX, STEMS, check_folder, check_index, model_index, variants
from rmd.models.hub import first_line, hub_errors, read_object
from rmd.models.parts import check_tokenizers

_OF_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Options of `from_pretrained` that control how a repository is fetched from the Hub."""
_ELSEWHERE = ("decoder.", "lm_head.", "logit_scale", "text_projection.", "vision_model.", "visual_projection.")
"""Prefixes of weights that the file of a whole model holds but its text encoder does not use."""
_LOADING = threading.RLock()


def load_checked(
    source: str | Path,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    check: Callable[[Path, Mapping[str, Any]], Mapping[str, Any]],
    **options: Any,
) -> DiffusionPipeline:
    """Load a pipeline as `rmd.models.registry.load_pipeline` does, with the same options and errors.

    Args:
        check: called with the folder and its index before weights are read; returns further options.
    """
    for name in ("custom_pipeline", "trust_remote_code"):
        if options.pop(name, None):
            raise RMDError(f"{name} is not accepted: RMD runs no code that comes with weights")
    options["use_safetensors"] = True
    folder, variant = fetch_pipeline(source, variant, options)
    index = model_index(folder)
    options = dict(check(folder, index)) | options
    if not hasattr(diffusers, index["_class_name"]):
        raise RMDError(
            f"the installed diffusers {diffusers.__version__} has no {index['_class_name']}, which {source} needs"
        )
    variant = check_folder(folder, index, variant, given=options)
    pipe = _from_pretrained(folder, dtype, variant, options)
    if str(folder) != str(source):
        pipe.register_to_config(_name_or_path=str(source))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_pretrained(
    folder: Path, dtype: torch.dtype, variant: str | None, options: Mapping[str, Any]
) -> DiffusionPipeline:
    """Let diffusers load a folder whose files have been checked."""
    with warnings.catch_warnings(), _complete(folder):
        # The older versions of diffusers that RMD supports do not know `dtype`, the new name of this option.
        warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")
        # Raised for a configuration with a size of zero, which is refused below because the weights contradict it.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        try:
            pipe = DiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, variant=variant, **options)
        except RMDError:
            raise
        # Any exception: the tokenizers library raises Exception itself, and nonsense in configurations makes the
        # networks' constructors raise anything at all. None of RMD's own code runs here.
        except Exception as error:
            raise RMDError(f"cannot load the pipeline {folder}: {first_line(error)}") from error
    with located(str(folder)):
        check_tokenizers(pipe.components)
    return pipe


def fetch_pipeline(
    source: str | Path, variant: str | None = None, options: dict[str, Any] | None = None
) -> tuple[Path, str | None]:
    """Find a pipeline's folder on this machine, or fetch it from the Hub; return it with the variant of its weights.

    Args:
        options: options of `from_pretrained`; those that control how a repository is fetched are removed from them.

    Raises:
        RMDError: the repository is absent, gated or unreachable; or its index names foreign classes.
    """
    options = {} if options is None else options
    fetching = {name: options.pop(name) for name in _OF_HUB if name in options}
    folder = user_path(str(source))
    if folder.exists():
        return folder, variant
    repository = str(source)
    with hub_errors(repository, "the pipeline"):
        common = {name: value for name, value in fetching.items() if name != "proxies"}
        index = Path(hf_hub_download(repository, INDEX, **common))
    check_index(read_object(index), f"{INDEX} of {repository}")
    try:
        return _download(repository, variant, fetching, options), variant
    except RMDError:
        # The repository may hold only a variant; its file list is requested only in that case.
        only = None if variant is not None else _variant_on_hub(repository, fetching)
        if only is None:
            raise
    return _download(repository, only, fetching, options), only


def _download(repository: str, variant: str | None, fetching: Mapping[str, Any], options: Mapping[str, Any]) -> Path:
    """Fetch a repository's pipeline from the Hub, or find it in the cache."""
    given = {name: value for name, value in options.items() if name != "quantization_config"}
    with hub_errors(repository, "the pipeline"):
        return Path(DiffusionPipeline.download(repository, variant=variant, **fetching, **given))


def _variant_on_hub(repository: str, fetching: Mapping[str, Any]) -> str | None:
    """Return the variant of a repository's weights, if there are no plain weights and no second variant."""
    if fetching.get("local_files_only"):
        return None
    try:
        with hub_errors(repository, "the list of files"):
            files = HfApi(token=fetching.get("token")).list_repo_files(repository, revision=fetching.get("revision"))
    except RMDError:
        return None  # the user should see the earlier error instead
    names = [file.rpartition("/")[2] for file in files]
    held = {variant for stem in STEMS.values() for variant in variants(names, stem)}
    return next(iter(held)) if len(held) == 1 else None


@contextmanager
def _complete(folder: Path) -> Iterator[None]:
    """Within the block, raise RMDError unless each network loaded from a part of `folder` gets exactly its own weights.

    diffusers and transformers can report mismatches, but `DiffusionPipeline` does not ask them to: missing weights are
    filled at random or left out, and only a log says so.
    """
    with _LOADING:
        usual = {kind: vars(kind)["from_pretrained"] for kind in (ModelMixin, PreTrainedModel)}
        for kind, method in usual.items():
            kind.from_pretrained = classmethod(_reporting(method.__func__, folder))
        try:
            yield
        finally:
            for kind, method in usual.items():
                kind.from_pretrained = method


def _reporting(usual: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return a `from_pretrained` that refuses networks that the library reports to be incomplete."""

    @wraps(usual)
    def load(cls: type[Any], path: Any, *args: Any, **options: Any) -> Any:
        if Path(path).parent != folder or options.get("output_loading_info"):
            return usual(cls, path, *args, **options)
        if issubclass(cls, PreTrainedModel):
            options["ignore_mismatched_sizes"] = True  # refused below, with the weight's name
        try:
            network, report = usual(cls, path, *args, output_loading_info=True, **options)
        except ValueError as error:
            wrong = re.search(r"because (\S+) expected shape \D*(\d[\d, ]*)\D+(\d[\d, ]*)", str(error))
            if wrong is None:
                raise RMDError(f"cannot load {path}: {first_line(error)}") from error
            raise _misshapen(Path(path), wrong[1], wrong[3], wrong[2]) from error
        except Exception as error:  # any exception, as in `load_checked`; here the part can be named
            raise RMDError(f"cannot load {path}: {first_line(error)}") from error
        refuse_incomplete(Path(path), network, report)
        return network

    return load


def refuse_incomplete(path: Path, network: Any, report: Mapping[str, Any]) -> None:
    """Raise RMDError with the name of a weight if a library reports that a network and its files do not match.

    Args:
        path: the folder that the network was loaded from.
        report: what `from_pretrained` returns with `output_loading_info`.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise RMDError(
            f"{path} lacks the weight {missing[0]}{_and_others(missing)}, which its config.json asks for: download it "
            "again"
        )
    for name, stored, wanted in report["mismatched_keys"]:
        raise _misshapen(path, name, ", ".join(map(str, stored)), ", ".join(map(str, wanted)))
    unexpected = superfluous(network, report["unexpected_keys"])
    if unexpected and getattr(network, "hf_quantizer", None) is None:
        raise RMDError(
            f"{path} holds the weight {unexpected[0]}{_and_others(unexpected)}, which the network of its config.json "
            "does not have: its config.json and weights belong to different models"
        )


def superfluous(network: Any, names: Any) -> list[str]:
    """Return the names of stored tensors that do not belong to a network.

    Two kinds are accepted: tables of positions, which older versions stored and later ones compute, and the other parts
    of a whole model from which only the text encoder is loaded.
    """
    tables = {name.rpartition(".")[2] for name, _ in network.named_buffers()}
    beside = _ELSEWHERE if isinstance(network, PreTrainedModel) else ()
    ignored = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    return sorted(
        name
        for name in names
        if name.rpartition(".")[2] not in tables
        and not name.startswith(beside)
        and not any(re.search(pattern, name) for pattern in ignored)
    )


def _misshapen(path: Path, name: str, stored: str, wanted: str) -> RMDError:
    """Return the error for a weight whose stored shape is not the one that the network needs."""
    return RMDError(
        f"{path} holds the weight {name} in the shape ({stored}), where its config.json asks for ({wanted}): its "
        "config.json and weights belong to different models"
    )


def _and_others(names: list[str]) -> str:
    """Return how many names there are beyond the first, as a part of a sentence."""
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
