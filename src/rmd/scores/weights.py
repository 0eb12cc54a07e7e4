"""The files of published networks: from a folder or the Hub, hashed, and converted once to safetensors.

Checkpoints in torch's format are read with `weights_only=True`, which refuses everything but tensors, and only once:
their tensors are then kept as safetensors beside the Hub's cache, under the checkpoint's hash.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import torch
from huggingface_hub import constants, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, read_errors, reason, replacing
from rmd.models.hub import hub_errors, refuse_pointer
from rmd.scores.result import Network

MAX_DOWNLOAD = 64 * 2**20
"""Largest size in bytes of a file that does not come from the Hub."""
STATE = "state_dict"
"""Key under which some checkpoints hold their tensors."""


@dataclass
class Source:
    """The source of the files of one network.

    Attributes:
        repository: the network's repository on the Hub, OWNER/NAME.
        folder: folder with repositories, as OWNER/NAME/FILE; None: the Hub and its cache.
        converted: folder for converted checkpoints and downloads; None: beside the Hub's cache.
        url: address of the folder of the files, if they are not on the Hub.
        hashes: SHA-256 of the files read so far, by name.
    """

    repository: str
    folder: Path | None = None
    converted: Path | None = None
    url: str = ""
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def network(self) -> Network:
        """The network with the files that were read."""
        return Network(name=self.repository, files=dict(self.hashes))

    @property
    def place(self) -> Path:
        """Folder for converted checkpoints and downloads."""
        return Path(constants.HF_HOME) / "rmd-scores" if self.converted is None else self.converted

    def path(self, name: str) -> Path:
        """Return the path of a file, which is fetched if necessary, and note its hash.

        Raises:
            RMDError: there is no such file, or it cannot be fetched.
        """
        if self.folder is not None:
            path = self.folder / self.repository / name
            if not path.is_file():
                raise RMDError(f"{path} is missing: download {name} of {self.repository} and put it there")
        elif self.url:
            path = self.place / self.repository / name
            if not path.is_file():
                _download(f"{self.url}/{quote(name)}", path)
        else:
            with hub_errors(self.repository, name):
                path = Path(hf_hub_download(self.repository, name))
        with read_errors(path):
            refuse_pointer(path)
            self.hashes[name] = sha256(path)
        return path

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint in the format of safetensors or of torch.

        Raises:
            RMDError: the file is missing or damaged, or has anything but tensors.
        """
        path = self.path(name)
        if path.suffix == ".safetensors":
            return _safetensors(path)
        kept = self.place / f"{self.hashes[name]}.safetensors"
        if kept.is_file():
            return _safetensors(kept)
        state = _torch(path)
        with disk_errors(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as partial:
                save_file({key: value.contiguous() for key, value in state.items()}, partial)
        return state


def fill(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give a network its tensors, whatever it holds; tensors of a network on the meta device become its own.

    Args:
        model: the network; buffers that are not saved keep their values.
        tensors: all of its tensors by its own names.
        what: what the tensors should be, for error messages.

    Raises:
        RMDError: a tensor is missing, unknown or of another shape.
    """
    expected = {name: value.shape for name, value in model.state_dict().items() if not name.endswith("position_ids")}
    found = {name: value.shape for name, value in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise RMDError(
            f"this is no {what}: {len(wrong)} tensors, such as {wrong[0]}, are missing, unknown or of another shape"
        )
    model.load_state_dict(tensors, strict=False, assign=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _download(url: str, path: Path) -> None:
    """Fetch a small file.

    Raises:
        RMDError: it cannot be fetched, or is too large.
    """
    try:
        with urlopen(url, timeout=30) as reply:
            content = reply.read(MAX_DOWNLOAD + 1)
    except OSError as error:
        raise RMDError(
            f"cannot fetch {url}: {reason(error)}; download it and name its folder with --weights"
        ) from error
    if len(content) > MAX_DOWNLOAD:
        raise RMDError(f"{url} is larger than {MAX_DOWNLOAD // 2**20} MB, so it is not the file that was expected")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(content)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with read_errors(path):
            return load_file(path)
    except SafetensorError as error:
        raise RMDError(f"{path} is damaged ({error}): download it again") from error


def _torch(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of torch; nothing in it is run."""
    try:
        with read_errors(path):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:
        raise RMDError(f"{path} is damaged: download it again") from error
    except pickle.UnpicklingError as error:
        raise RMDError(f"{path} holds more than tensors and is not read: download the original file") from error
    state = content.get(STATE, content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RMDError(f"{path} holds something else than the tensors of a network: download the original file")
    return {str(name).removeprefix("module."): value for name, value in state.items()}
