"""Reads the index of a checkpoint without running any code.

torch.distributed.checkpoint stores the index of a checkpoint (`.metadata`) as a pickle, and a pickle may call any
function that it names. RMD's checkpoints contain only tensors, so their indices need a dozen names and two dozen
instructions. Everything else is refused here, nothing is ever called, and torch's index is rebuilt from plain values
that have been checked.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from rmd.common.errors import RMDError, shown

INDEX = ".metadata"
MAX_INDEX = 2**29
"""Largest index in bytes: 10,000 weights with their optimiser states need about 300 MB on 64 devices."""
_DCP = "torch.distributed.checkpoint"
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_NAMES = {
    *(f"{_DCP}.metadata.{name}" for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    f"{_DCP}.filesystem._StorageInfo", "torch.Size", "torch.serialization._get_layout", *_DTYPES,
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
}  # fmt: skip
"""All names that may occur in the index of a checkpoint."""
Value = TypeVar("Value")


class IndexReader(FileSystemReader):
    """Reads the tensors of a checkpoint whose index has passed `read_index`.

    Tensors are read by `torch.load(weights_only=True)`, which also refuses everything but tensors.
    """

    def __init__(self, folder: Path) -> None:
        """Read and check the index; raises the errors of `read_index`."""
        super().__init__(folder)
        self._index = read_index(folder)

    @property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """The dtype, size and chunks of every tensor, by name."""
        return cast(dict[str, TensorStorageMetadata], self._index.state_dict_metadata)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the checked index, for which torch asks again when it reads tensors."""
        return self._index


def read_index(folder: Path) -> Metadata:
    """Read which tensors a checkpoint holds, and where their chunks are in its files.

    Chunks must be in files of the folder itself that are long enough for them, and tensors must be no larger than their
    chunks: an index can neither lead to other files nor claim memory for values that do not exist.

    Raises:
        RMDError: the index names something that no checkpoint of RMD contains.
        OSError: the index cannot be read.
        ValueError: it is damaged.
    """
    path = folder / INDEX
    if path.stat().st_size > MAX_INDEX:
        raise ValueError(f"its index has more than {MAX_INDEX // 2**20} MB")
    index = _fields(_unpickle(path), "Metadata")
    entries, storage = (_typed(index.get(name), dict) for name in ("state_dict_metadata", "storage_data"))
    tensors: dict[str, TensorStorageMetadata] = {}
    for name, entry in entries.items():
        if _is_made(entry, "BytesStorageMetadata"):
            raise RMDError(f"the checkpoint {folder} holds {shown(name)}, which is not a tensor: RMD does not load it")
        tensors[_typed(name, str)] = _tensor(_fields(entry, "TensorStorageMetadata"))
    lengths = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for key, info in storage.items():
        chunk = _fields(key, "MetadataIndex")
        where = MetadataIndex(_typed(chunk.get("fqn"), str), _sizes(chunk.get("offset")))
        places[where] = _place(_fields(info, "_StorageInfo"), lengths, folder)
    for name, tensor in tensors.items():
        _check(name, tensor, places)
    return Metadata(dict(tensors), storage_data=places, storage_meta=StorageMeta())


class _Name(str):
    """Name of a class, a function or a dtype in a pickle, in place of the object itself."""


@dataclass(eq=False)
class _Made:
    """Record of a call in a pickle: the name of what is called, its arguments, and the state that is set afterwards."""

    name: str
    args: object
    state: object = None


class _Foreign(Exception):
    """Raised if a pickle names something that the index of a checkpoint does not contain."""


class _Unpickler(pickle._Unpickler):
    """Interprets a pickle without calling anything: what a call would create becomes a record (`_Made`)."""

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise _Foreign(full)
        return _Name(full)

    def make(self) -> None:
        args, name = self.stack.pop(), self.stack.pop()
        self.stack.append(_Made(_typed(name, _Name), args))

    def build(self) -> None:
        state = self.stack.pop()
        _typed(self.stack[-1], _Made).state = state


_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK MEMOIZE BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINUNICODE "
    "SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "GLOBAL STACK_GLOBAL"
)
"""Instructions of an index that create plain values; any other instruction is refused."""
_Unpickler.dispatch = {
    **{code: pickle._Unpickler.dispatch[code] for code in (vars(pickle)[name][0] for name in _INSTRUCTIONS.split())},
    **cast(
        Any, {pickle.REDUCE[0]: _Unpickler.make, pickle.NEWOBJ[0]: _Unpickler.make, pickle.BUILD[0]: _Unpickler.build}
    ),
}


def _unpickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except _Foreign as error:
        raise RMDError(
            f"the checkpoint {path.parent} is not one that RMD wrote: its index names {str(error)[:60]}, with which it "
            "could run code; nothing of it was run or loaded; delete it unless you know where it comes from"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can make its interpreter raise almost anything
        raise ValueError("its index is not that of a checkpoint") from error


def _tensor(fields: dict[str, object]) -> TensorStorageMetadata:
    properties = _typed(fields.get("properties"), _Made)
    state = _typed(properties.state, tuple)
    if not _is_made(properties, "TensorProperties") or len(state) != 5 or type(state[0]) is not _Name:
        raise ValueError("its index holds a tensor of an unknown kind")
    dtype = _DTYPES.get(state[0])
    if dtype is None:
        raise ValueError("its index holds a tensor of an unknown dtype")
    chunks = [
        ChunkStorageMetadata(_sizes(chunk.get("offsets")), _sizes(chunk.get("sizes")))
        for chunk in (_fields(made, "ChunkStorageMetadata") for made in _typed(fields.get("chunks"), list))
    ]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _sizes(fields.get("size")), chunks)


def _place(fields: dict[str, object], lengths: dict[str, int], folder: Path) -> _StorageInfo:
    """Return where a chunk is: the file in the folder, the first byte, and the number of bytes."""
    name = _typed(fields.get("relative_path"), str)
    offset, length = (_typed(fields.get(key), int) for key in ("offset", "length"))
    if name not in lengths and (Path(name).name != name or name in ("", "..")):
        raise RMDError(
            f"the checkpoint {folder} is not one that RMD wrote: its index leads to {shown(name)}, outside its folder"
        )
    if name not in lengths or not 0 <= offset <= offset + length <= lengths[name]:
        raise ValueError(f"its file {shown(name)} is missing or cut short")
    if fields.get("transform_descriptors"):
        raise ValueError(f"its file {shown(name)} is in another format")
    return _StorageInfo(name, offset, length)


def _check(name: str, tensor: TensorStorageMetadata, places: dict[MetadataIndex, _StorageInfo]) -> None:
    """Raise ValueError unless a tensor's chunks are inside it, have their bytes in a file, and suffice to fill it."""
    covered = 0
    for chunk in tensor.chunks:
        place, count = places.get(MetadataIndex(name, chunk.offsets)), math.prod(chunk.sizes)
        inside = len(chunk.offsets) == len(chunk.sizes) == len(tensor.size) and all(
            offset + size <= whole for offset, size, whole in zip(chunk.offsets, chunk.sizes, tensor.size, strict=True)
        )
        if place is None or not inside or count * tensor.properties.dtype.itemsize > place.length:
            raise ValueError(f"its index claims more of {shown(name)} than its files hold")
        covered += count
    if covered < math.prod(tensor.size):
        raise ValueError(f"its index lacks a part of {shown(name)}")


def _sizes(made: object) -> torch.Size:
    """Return a size or an offset: at most 16 numbers of at most 63 bits."""
    args = _typed(made.args, tuple) if _is_made(made, "Size") else ()
    sizes = _typed(args[0], tuple) if len(args) == 1 else None
    if sizes is None or len(sizes) > 16 or not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise ValueError("its index holds something that is not a size")
    return torch.Size(sizes)


def _fields(made: object, name: str) -> dict[str, object]:
    """Return the fields of a record of the named class."""
    if not _is_made(made, name):
        raise ValueError(f"its index holds something else in place of {name}")
    return _typed(made.state, dict)


def _is_made(made: object, name: str) -> TypeGuard[_Made]:
    return type(made) is _Made and made.name.rpartition(".")[2] == name


def _typed(value: object, kind: type[Value]) -> Value:
    """Return the value if its type is exactly `kind`; raise ValueError otherwise."""
    if type(value) is not kind:
        raise ValueError(f"its index holds a {type(value).__name__} where a {kind.__name__} belongs")
    return value
