"""The index of a checkpoint is read without running any code, whatever it holds; real ones as torch reads them."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorProperties
from torch.distributed.checkpoint.state_dict_saver import save

from rmd.common.errors import RMDError
from rmd.train.checkpoint import read_student_state
from rmd.train.index import INDEX, IndexReader, read_index

TENSORS = {
    "student/a": torch.arange(12.0).reshape(3, 4),
    "student/step": torch.tensor(3.0),
    "student/half": torch.ones(2, dtype=torch.bfloat16),
    "student/count": torch.arange(600).reshape(300, 2),
    "student/empty": torch.zeros(0, 3),
    "student/" + 300 * "long": torch.ones(1),
}


def write(folder: Path, tensors: dict[str, Any] = TENSORS) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save(dict(tensors), checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "step-000001")


class Call:
    """Pickles as a call of a function, which unpickling would make."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.how = (function, args)

    def __reduce__(self) -> Any:
        return self.how


def put(folder: Path, index: object) -> None:
    (folder / INDEX).write_bytes(index if isinstance(index, bytes) else pickle.dumps(index))


def changed(folder: Path, change: Callable[[Metadata], object]) -> None:
    """Change the index of a checkpoint, and write it again."""
    index = pickle.loads((folder / INDEX).read_bytes())
    change(index)
    put(folder, index)


def first_place(index: Metadata) -> Any:
    return next(iter(index.storage_data.values()))


def test_a_real_index_is_read_as_torch_reads_it(checkpoint: Path) -> None:
    ours, theirs = read_index(checkpoint), FileSystemReader(checkpoint).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data
    state = read_student_state(checkpoint)
    assert state.keys() == {name.removeprefix("student/") for name in TENSORS}
    for name, value in TENSORS.items():
        read = state[name.removeprefix("student/")]
        assert read.dtype == value.dtype and torch.equal(read, value)


def test_the_places_of_tensors_beyond_two_gigabytes_are_read(checkpoint: Path) -> None:
    def far(index: Metadata) -> None:
        for place in index.storage_data.values():
            place.offset += 2**40

    changed(checkpoint, far)
    with (checkpoint / "__0_0.distcp").open("r+b") as file:
        file.truncate(2**41)  # a file with a hole
    assert min(place.offset for place in read_index(checkpoint).storage_data.values()) == 2**40


def attacks(proof: Path) -> dict[str, object]:
    """Return indices that would write a file or call something else when unpickled, by the name that each contains."""
    shell, python = f"touch {proof}", f"open({str(proof)!r}, 'w')"
    text = "\x8c{}{}".format
    named = [text(chr(len(word)), word).encode("latin-1") for word in ("torch.serialization", "os.system", shell)]
    return {
        "posix.system": Call(os.system, shell),
        "builtins.eval": Call(eval, python),
        "builtins.exec": Call(exec, python),
        "builtins.getattr": Call(getattr, Metadata, "__init__"),
        "nt.system": b"cnt\nsystem\n(S'true'\ntR.",
        "torch.serialization.save": Call(torch.save, 1, str(proof)),
        "torch.serialization.load": Call(torch.load, str(proof)),
        "torch._utils._rebuild_tensor_v2": torch.ones(2),
        "_pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, shell))),
        "builtins.print": Metadata({"student/a": Call(print, "run")}),  # type: ignore[dict-item]
        "torch.serialization.os.system": b"\x80\x04" + named[0] + named[1] + b"\x93" + named[2] + b"\x85R.",
    }


INSTRUCTIONS = {
    "a set": pickle.dumps({1}),
    "instance": b"(S'true'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'true'\no.",
    "extension": b"\x80\x04\x82\x01.",
    "persistent id": b"P1\n.",
    "a call of a text": b"\x80\x04\x8c\x04eval\x8c\x011\x85R.",
    "a huge memo": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a huge array": b"\x80\x05\x96\x00\x00\x00\x00\xff\x00\x00\x00.",
    "state of a class": b"\x80\x04\x8c\x05torch\x8c\x04Size\x93N}\x8c\x08__hash__Ns\x86b.",
    "nothing": b"",
    "plain values": pickle.dumps({"state_dict_metadata": {}, "storage_data": {}}),
    "no end": b"\x80\x04N",
}
"""Indices of instructions that real ones do not contain."""


@pytest.mark.parametrize("name", attacks(Path("/tmp/never")))
def test_nothing_that_an_index_names_is_called(
    name: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proof = tmp_path / "proof"
    put(checkpoint, attacks(proof)[name])
    with pytest.raises(RMDError, match=rf"is not one that RMD wrote: its index names {name}, with which it could run"):
        read_student_state(checkpoint)
    assert not proof.exists() and capfd.readouterr().out == ""


def test_the_attacks_are_real(tmp_path: Path) -> None:
    for name in ("posix.system", "builtins.eval", "torch.serialization.save", "_pickle.loads"):
        proof = tmp_path / name
        pickle.loads(pickle.dumps(attacks(proof)[name]))
        assert proof.exists()


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_other_instructions_end_the_reading(name: str, checkpoint: Path) -> None:
    put(checkpoint, INSTRUCTIONS[name])
    with pytest.raises(RMDError, match=f"^the checkpoint {checkpoint} is (damaged|not one that RMD wrote)"):
        read_student_state(checkpoint)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_index_is_read_right_or_told(
    at: int, byte: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        write(folder)
        (folder / INDEX).rename(folder / "whole")
    content = bytearray((folder / "whole").read_bytes())
    content[at % len(content)] = byte
    put(folder, bytes(content[: at % len(content)] if cut else content))
    try:
        index = IndexReader(folder).tensors
    except (RMDError, ValueError):
        return
    assert all(entry.size.numel() <= 600 for entry in index.values())


@pytest.mark.parametrize("name", ["../step-000000/__0_0.distcp", "/etc/passwd", "..", "", ".", "a/b", "./__0_0.distcp"])
def test_an_index_does_not_lead_out_of_its_folder(name: str, checkpoint: Path) -> None:
    beside = write(checkpoint.parent / "step-000000")
    assert (checkpoint / "../step-000000/__0_0.distcp").is_file() and beside.is_dir()

    def lead_out(index: Metadata) -> None:
        first_place(index).relative_path = name

    changed(checkpoint, lead_out)
    with pytest.raises(RMDError, match=r"is not one that RMD wrote: its index leads to .*, outside its folder$"):
        read_student_state(checkpoint)


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-000001", {"student/a": torch.ones(2), "extra": {"any": object}})
    with pytest.raises(RMDError, match=r"holds 'extra\.any', which is not a tensor: RMD does not load it$"):
        read_student_state(folder)
    assert isinstance(FileSystemReader(folder).read_metadata().state_dict_metadata["extra.any"], BytesStorageMetadata)


def test_an_object_in_place_of_a_tensors_values_is_not_unpickled(checkpoint: Path, tmp_path: Path) -> None:
    proof, file = tmp_path / "proof", checkpoint / "other"
    torch.save(Call(os.system, f"touch {proof}"), file)

    def lead_there(index: Metadata) -> None:
        place = first_place(index)
        place.relative_path, place.offset, place.length = file.name, 0, file.stat().st_size

    changed(checkpoint, lead_there)
    with pytest.raises(RMDError, match=r"is damaged: .* \(it holds something that is not a tensor\)$"):
        read_student_state(checkpoint)
    assert not proof.exists()


def grow(index: Metadata) -> None:
    """Claim 10^15 values for a tensor of twelve."""
    entry: Any = index.state_dict_metadata["student/a"]
    entry.size = torch.Size([10**8, 10**7])


def grow_all(index: Metadata) -> None:
    grow(index)
    entry: Any = index.state_dict_metadata["student/a"]
    entry.chunks[0].sizes = entry.size


def give_dimensions(index: Metadata) -> None:
    entry: Any = index.state_dict_metadata["student/empty"]
    entry.size = entry.chunks[0].sizes = torch.Size([0] * 17)


def lose_a_chunk(index: Metadata) -> None:
    entry: Any = index.state_dict_metadata["student/a"]
    entry.chunks.clear()


def lose_a_place(index: Metadata) -> None:
    index.storage_data.pop(next(iter(index.storage_data)))


def go_beyond(index: Metadata) -> None:
    first_place(index).length += 10**9


def begin_before(index: Metadata) -> None:
    first_place(index).offset = -1


def name_no_file(index: Metadata) -> None:
    first_place(index).relative_path = "__7_0.distcp"


def transform(index: Metadata) -> None:
    first_place(index).transform_descriptors = ["zstandard"]


def mistype(index: Metadata) -> None:
    first_place(index).offset = 0.0


def lose_the_kind(index: Metadata) -> None:
    entry: Any = index.state_dict_metadata["student/a"]
    entry.properties = TensorProperties


def lose_everything(index: Metadata) -> None:
    index.storage_data = None


@pytest.mark.parametrize(
    "change",
    [grow, grow_all, give_dimensions, lose_a_chunk, lose_a_place, go_beyond, begin_before, name_no_file, transform,
     mistype, lose_the_kind, lose_everything],
)  # fmt: skip
def test_an_index_that_its_files_do_not_bear_out_is_told(change: Callable[[Metadata], None], checkpoint: Path) -> None:
    changed(checkpoint, change)
    with pytest.raises(RMDError, match=f"^the checkpoint {checkpoint} is damaged: remove it to resume from the one be"):
        read_student_state(checkpoint)


def test_an_index_that_is_too_large_is_not_read(checkpoint: Path) -> None:
    with (checkpoint / INDEX).open("r+b") as file:
        file.truncate(2**40)  # a hole
    with pytest.raises(RMDError, match="its index has more than 512 MB"):
        read_student_state(checkpoint)
