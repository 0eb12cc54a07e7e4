"""Load the folder of a diffusers pipeline, and check its files before and while diffusers loads them.

Only safetensors files and plain configurations are read, so nothing that is loaded can run code; and every network
gets all of its weights, or loading fails.
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
import transformers
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import HfApi, hf_hub_download
from transformers import PreTrainedModel

from rmd.common.errors import RMDError, shown
from rmd.common.files import user_path
from rmd.models.hub import check_weights, hub_errors, read_object, refuse_pointer
from rmd.models.parts import check_tokenizers

INDEX = "model_index.json"
"""File that makes a folder a diffusers pipeline."""
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""Names of weight files without their endings, by the library of the network."""
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
    check: Callable[[Path, Mapping[str, Any]], Mapping[str, Any]] = lambda folder, index: {},
    **options: Any,
) -> DiffusionPipeline:
    """Load a pipeline from a folder or the Hub.

    Args:
        variant: variant of the weight files, such as "fp16"; by default the plain files, or the only variant there is.
        check: called with the folder and its index before weights are read; returns further options.
        options: passed on to `DiffusionPipeline.from_pretrained`.

    Raises:
        RMDError: there is no pipeline; a part names a class that is not from diffusers or transformers; its files are
            damaged, pickled or missing; or its weights are not exactly those of the network.
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
            f"the installed diffusers {diffusers.__version__} has no {index['_class_name']}, as {source} needs"
        )
    found = check_folder(folder, index, variant, given=options)
    with warnings.catch_warnings(), _complete(folder):
        # The older versions of diffusers that RMD supports do not know `dtype`, the new name of this option.
        warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")
        # said of a configuration with a size of zero, which the weights are about to contradict
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        try:
            pipe = DiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, variant=found, **options)
        except RMDError:
            raise
        # Any exception: the tokenizers library raises Exception itself, and nonsense in configurations makes the
        # networks' constructors raise anything at all. None of RMD's own code runs here.
        except Exception as error:
            raise RMDError(f"cannot load the pipeline {folder}: {_reason(error)}") from error
    try:
        check_tokenizers(pipe.components)
    except RMDError as error:
        raise RMDError(f"{folder}: {error}") from error
    if str(folder) != str(source):
        pipe.register_to_config(_name_or_path=str(source))
    pipe.set_progress_bar_config(disable=True)
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


def model_index(folder: Path) -> dict[str, Any]:
    """Return a pipeline's index, after checking that it names only classes of diffusers and transformers.

    Raises:
        RMDError: the folder has no index, or the index names something else.
    """
    path = folder / INDEX
    if not path.is_file():
        raise RMDError(f"{folder} is no diffusers pipeline: it has no {INDEX}")
    index = read_object(path)
    check_index(index, str(path))
    return index


def check_index(index: Mapping[str, Any], where: str) -> None:
    """Check an index that has been read already, as `model_index` does; `where` names it in errors."""
    if "_class_name" not in index:
        raise RMDError(f"{where} is not readable as a diffusers model index: it has no _class_name")
    if not isinstance(index["_class_name"], str):
        raise RMDError(
            f"{where} names the pipeline {shown(index['_class_name'])}, which is no class of diffusers: RMD runs no "
            "code that comes with weights"
        )
    for part, entry in index.items():
        if not part.startswith("_") and isinstance(entry, list):
            _class_of(entry, f"{where}: {part}")


def check_folder(
    folder: Path, index: Mapping[str, Any], variant: str | None, *, given: Mapping[str, Any]
) -> str | None:
    """Check the files of every part of a pipeline that is not `given`; return the variant to load.

    Raises:
        RMDError: a part has no safetensors files or a damaged one, or there are several variants and none was chosen.
    """
    chosen = variant
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or part in given:
            continue
        kind = _class_of(entry, f"{folder / INDEX}: {part}")
        if kind is None:
            continue
        _check_part(folder / part)
        if issubclass(kind, (ModelMixin, PreTrainedModel)):
            stem = STEMS["diffusers" if issubclass(kind, ModelMixin) else "transformers"]
            names = [path.name for path in (folder / part).iterdir()]
            used = variant if variant in variants(names, stem) else _only(folder / part, names, stem)
            for path in weight_files(folder / part, stem, used):
                check_weights(path)
            if used is not None and chosen not in (None, used):
                raise RMDError(
                    f"{folder / part} holds weights in the variant {used} alone, and another part in {chosen} alone: "
                    "save the pipeline anew with one of them"
                )
            chosen = chosen or used
    return chosen


def variants(names: list[str], stem: str) -> list[str | None]:
    """Return the variants among weight files of these names; None stands for the plain files."""
    pattern = re.compile(
        rf"{re.escape(stem)}(?:\.(?P<one>[^.]+?))?(?:-\d+-of-\d+)?\.safetensors"
        r"(?:\.index(?:\.(?P<sharded>[^.]+))?\.json)?"
    )
    found = [match for name in names if (match := pattern.fullmatch(name))]
    return list(dict.fromkeys(match["one"] or match["sharded"] for match in found))


def weight_files(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """Return the safetensors files that hold a network's weights: a single file, or those that an index names.

    Raises:
        RMDError: there are none, or the index names a file that is missing or outside the folder.
    """
    mark = "" if variant is None else f".{variant}"
    single, index = folder / f"{stem}{mark}.safetensors", folder / f"{stem}.safetensors.index{mark}.json"
    if index.is_file():
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise RMDError(f"{index} names no files: download it again")
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name:
                raise RMDError(f"{index} names {shown(name)}, which is no file beside it: download it again")
            if not (folder / name).is_file():
                raise RMDError(f"{index} names {name}, and there is no such file beside it: download it again")
        return [folder / name for name in names]
    return [single]


def _download(repository: str, variant: str | None, fetching: Mapping[str, Any], options: Mapping[str, Any]) -> Path:
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
    found = {variant for stem in STEMS.values() for variant in variants(names, stem)}
    return next(iter(found)) if len(found) == 1 else None


def _class_of(entry: list[Any], where: str) -> type | None:
    """Return the class that an index names as [library, class], or None if the pipeline does without the part."""
    if entry == [None, None] or entry == [None, None, None]:
        return None
    if len(entry) == 2 and all(isinstance(name, str) and name.isidentifier() for name in entry):
        library, name = entry
        home: Any = {"diffusers": diffusers, "transformers": transformers}.get(library)
        if home is None and library in _PIPELINES:
            home = getattr(diffusers.pipelines, library)
        kind = None if home is None or name.startswith("_") else getattr(home, name, None)
        if isinstance(kind, type):
            return kind
    raise RMDError(
        f"{where} is {shown(entry)}, which is no class of the installed diffusers or transformers: RMD runs no code "
        "that comes with weights"
    )


_PIPELINES = frozenset(
    path.name
    for path in (Path(str(diffusers.__file__)).parent / "pipelines").iterdir()
    if path.is_dir() and path.name.isidentifier() and not path.name.startswith("_")
)
"""Folders of diffusers with parts of one pipeline only, such as Stable Diffusion's safety checker."""


def _check_part(folder: Path) -> None:
    """Raise RMDError if a part's folder is missing, holds git-LFS pointers, or asks for code of its own."""
    if not folder.is_dir():
        raise RMDError(f"there is no folder {folder}, and {INDEX} beside it says so: download the pipeline again")
    for path in sorted(folder.iterdir()):
        if path.is_file():
            refuse_pointer(path)
            if path.suffix == ".json" and "auto_map" in read_object(path):
                raise RMDError(f"{path} asks for code of its own (auto_map): RMD runs no code that comes with weights")


def _only(folder: Path, names: list[str], stem: str) -> str | None:
    """Return the variant to load if the requested one is missing: the plain files, or the only variant there is."""
    found = variants(names, stem)
    if None in found:
        return None
    if len(found) == 1:
        return found[0]
    if found:
        raise RMDError(
            f"{folder} holds weights in the variants {', '.join(map(str, found))}: choose one with --variant, or "
            "variant= in Python"
        )
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    if pickled:
        raise RMDError(
            f"{folder} holds its weights as {pickled[0]}, a pickle, which can run code when it is loaded: convert them "
            "to safetensors (save_pretrained of diffusers and transformers writes these)"
        )
    raise RMDError(f"{folder} holds no weights: there is no {stem}.safetensors; download it again")


@contextmanager
def _complete(folder: Path) -> Iterator[None]:
    """Make every network that the block loads from a part of `folder` find exactly its own weights there.

    Both libraries can return what they found wrong, but `DiffusionPipeline` does not ask them to: missing weights are
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
    @wraps(usual)
    def load(cls: type[Any], path: Any, *args: Any, **options: Any) -> Any:
        if Path(path).parent != folder or options.get("output_loading_info"):
            return usual(cls, path, *args, **options)
        if issubclass(cls, PreTrainedModel):
            options["ignore_mismatched_sizes"] = True  # refused below, by name
        try:
            network, report = usual(cls, path, *args, output_loading_info=True, **options)
        except ValueError as error:
            wrong = re.search(r"because (\S+) expected shape \D*(\d[\d, ]*)\D+(\d[\d, ]*)", str(error))
            if wrong is None:
                raise RMDError(f"cannot load {path}: {_reason(error)}") from error
            raise _misshapen(Path(path), wrong[1], wrong[3], wrong[2]) from error
        except Exception as error:  # any exception, as in `load_checked`; here the part can be named
            raise RMDError(f"cannot load {path}: {_reason(error)}") from error
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
    unexpected = needless(network, report["unexpected_keys"])
    if unexpected and getattr(network, "hf_quantizer", None) is None:
        raise RMDError(
            f"{path} holds the weight {unexpected[0]}{_and_others(unexpected)}, which the network of its config.json "
            "does not have: its config.json and weights belong to different models"
        )


def needless(network: Any, names: Any) -> list[str]:
    """Return the stored tensors that a network has no place for, except tables that the network computes itself.

    Older files hold position tables that later versions compute anew, and a text encoder's file may be that of a whole
    model.
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


def _reason(error: Exception) -> str:
    """Return the first line of a library's error message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _misshapen(path: Path, name: str, stored: str, wanted: str) -> RMDError:
    return RMDError(
        f"{path} holds the weight {name} in the shape ({stored}), where its config.json asks for ({wanted}): its "
        "config.json and weights belong to different models"
    )


def _and_others(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
