"""Training data: a cache that equals fresh renders, and batches that are permutations."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from research.scenes import dataset
from research.scenes.dataset import BatchOrder, batches, cached_scenes
from rmd.common.errors import RMDError
from rmd.worlds.dataset import SceneSet
from rmd.worlds.still.dataset import make_scenes


def assert_equal(result: SceneSet, expected: SceneSet) -> None:
    assert torch.equal(result.images, expected.images)
    assert torch.equal(result.attributes, expected.attributes)
    assert torch.equal(result.places, expected.places)
    assert result.captions == expected.captions


@pytest.fixture(scope="module")
def fresh() -> SceneSet:
    return make_scenes(6, seed=3, training=True, size=16)


def test_a_set_of_scenes(fresh: SceneSet) -> None:
    assert fresh.images.shape == (6, 3, 16, 16) and fresh.images.dtype == torch.uint8
    assert fresh.attributes.shape == (6, 9) and fresh.places.shape == (6, 2, 3)
    assert len(fresh) == len(fresh.captions) == 6
    assert_equal(make_scenes(6, seed=3, training=True, size=16), fresh)


def test_the_cache_equals_a_fresh_render(fresh: SceneSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "new"
    assert_equal(cached_scenes(6, seed=3, training=True, size=16, cache=cache), fresh)
    (stored,) = cache.iterdir()  # there is no temporary file
    assert stored.suffix == ".pt"
    monkeypatch.setattr(dataset, "make_scenes", None)  # rendering again would fail
    assert_equal(cached_scenes(6, seed=3, training=True, size=16, cache=cache), fresh)


def test_other_scenes_are_not_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"count": 4, "seed": 3, "training": True, "size": 16}
    for change in ({}, {"count": 5}, {"seed": 4}, {"training": False}, {"size": 32}):
        cached_scenes(**(usual | change), cache=tmp_path)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 5
    monkeypatch.setattr(dataset, "renderer_key", lambda world: "other")
    cached_scenes(**usual, cache=tmp_path)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 6


def test_a_damaged_cache_is_reported(tmp_path: Path) -> None:
    cached_scenes(2, seed=0, training=True, size=8, cache=tmp_path)
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:200])
    with pytest.raises(RMDError, match="is damaged: remove it"):
        cached_scenes(2, seed=0, training=True, size=8, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RMDError, match=r"cannot save .*: .*; put that right"):
        cached_scenes(2, seed=0, training=True, size=8, cache=tmp_path / "file")


def test_pixels_are_in_the_range_of_diffusers(fresh: SceneSet) -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 3, 1, 3)
    scene = SceneSet(levels, torch.zeros(1, 9), [""], torch.zeros(1, 2, 3))
    assert scene.pixels(torch.tensor([0])).unique().tolist() == pytest.approx([-1, -0.6, 1])
    assert torch.equal(fresh.pixels(torch.tensor([4, 1])), fresh.images[[4, 1]].float() / 127.5 - 1)


def test_an_epoch_of_batches_is_a_permutation() -> None:
    result = list(islice(batches(10, 5, seed=1), 6))
    for epoch in range(3):
        assert torch.cat(result[2 * epoch : 2 * epoch + 2]).sort().values.tolist() == list(range(10))
    assert not torch.equal(torch.cat(result[:2]), torch.cat(result[2:4]))


def test_the_rest_of_an_epoch_is_dropped() -> None:
    for batch in islice(batches(11, 4, seed=0), 9):
        assert len(batch) == 4 and len(batch.unique()) == 4
    first = torch.cat(list(islice(batches(11, 4, seed=0), 2)))
    assert len(first.unique()) == 8


def test_batches_are_a_function_of_the_seed() -> None:
    def three(seed: int) -> torch.Tensor:
        return torch.cat(list(islice(batches(8, 4, seed=seed), 3)))

    assert torch.equal(three(5), three(5))
    assert not torch.equal(three(5), three(6))


def test_too_few_scenes_for_a_batch_are_refused() -> None:
    with pytest.raises(RMDError, match="3 scenes do not fill a batch of 4"):
        next(batches(3, 4, seed=0))


def test_batches_can_be_accessed_at_any_position() -> None:
    expected = [result.tolist() for result in islice(batches(10, 3, seed=1), 20)]
    order = BatchOrder(10, 3, seed=1)
    assert [order.at(position).tolist() for position in (0, 1, 5, 6, 2, 2, 19)] == [
        expected[position] for position in (0, 1, 5, 6, 2, 2, 19)
    ]
