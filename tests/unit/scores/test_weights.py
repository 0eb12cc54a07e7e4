"""The files of networks: hashed, converted once, and refused if they hold anything but tensors."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rmd.common.errors import RMDError
from rmd.scores import weights
from rmd.scores.weights import Source


class Call:
    """Is pickled as a call of a function: whoever unpickles it makes the call."""

    def __reduce__(self) -> Any:
        return os.system, ("touch run",)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "some/net").mkdir(parents=True)
    return Source("some/net", tmp_path, tmp_path / "kept")


def test_a_checkpoint_is_converted_once(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some/net/a.pt"
    state = {"module.w": torch.arange(6.0).view(2, 3).T, "b": torch.ones(2, dtype=torch.float16)}
    torch.save({"state_dict": state, "epoch": 1}, path)
    first = source.tensors("a.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.network.files == {"a.pt": digest} and source.network.name == "some/net"
    assert [each.name for each in (tmp_path / "kept").iterdir()] == [f"{digest}.safetensors"]
    monkeypatch.setattr(weights.torch, "load", None)
    again = source.tensors("a.pt")
    for found in (first, again):
        assert found.keys() == {"w", "b"}
        torch.testing.assert_close(found["w"], state["module.w"])
        assert found["b"].dtype == torch.float16


def test_safetensors_are_read_as_they_are(source: Source, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "some/net/a.safetensors")
    assert source.tensors("a.safetensors").keys() == {"w"}
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"w": Call()}, "holds more than tensors and is not read: download the original file"),
        ({"state_dict": {"w": 3}}, "holds something else than the tensors of a network: download the original file"),
        ([torch.ones(1)], "holds something else than the tensors of a network: download the original file"),
        (None, "holds something else than the tensors of a network: download the original file"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_nothing_runs(
    content: Any, sentence: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "some/net/a.pt")
    with pytest.raises(RMDError) as error:
        source.tensors("a.pt")
    assert str(error.value) == f"{tmp_path / 'some/net/a.pt'} {sentence}"
    assert not (tmp_path / "run").exists() and not (tmp_path / "kept").exists()


def test_missing_and_damaged_files(source: Source, tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"a\.pt is missing: download a\.pt of some/net and put it there$"):
        source.path("a.pt")
    (tmp_path / "some/net/a.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(RMDError, match=r"a\.pt (is damaged|holds more than tensors)"):
        source.tensors("a.pt")
    (tmp_path / "some/net/a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RMDError, match=r"a\.safetensors is damaged \(.*\): download it again$"):
        source.tensors("a.safetensors")


def test_files_with_an_address_of_their_own_are_fetched_once(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "served" / "a+b.pt")
    address = (tmp_path / "served").as_uri()
    source = Source("some/net", None, tmp_path / "kept", address)
    assert source.tensors("a+b.pt").keys() == {"w"}
    (tmp_path / "served" / "a+b.pt").unlink()
    assert source.path("a+b.pt") == tmp_path / "kept/some/net/a+b.pt"
    with pytest.raises(
        RMDError, match=r"^cannot fetch file://.*/c\.pt: .*; download it and name its folder with --weights$"
    ):
        source.path("c.pt")


def test_a_download_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(bytes(100))
    monkeypatch.setattr(weights, "MAX_DOWNLOAD", 99)
    with pytest.raises(RMDError, match=r"/a\.pt is larger than 0 MB, so it is not the file that was expected$"):
        Source("some/net", None, tmp_path / "kept", tmp_path.as_uri()).path("a.pt")
    assert not (tmp_path / "kept").exists()
