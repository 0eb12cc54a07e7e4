"""The cache of encoded prompts returns what the encoders returned, survives kills, and belongs to one teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from families import TINY, frames_of, recipe_of
from helpers import PROMPTS, write_prompts

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.data import cache as module
from rmd.data.cache import PromptCache, build_cache, encoders_key, verify_cache
from rmd.data.cache_files import INDEX, META
from rmd.models import Backbone
from rmd.train.loop import Trainer

families = pytest.mark.parametrize("family", sorted(TINY))
FULL = Stage(1, 32, 32)


def built(backbone: Backbone, folder: Path, **options: Any) -> PromptCache:
    assert build_cache(backbone, PROMPTS, folder, shard_prompts=2, batch_size=2, **options)
    return PromptCache(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a cache; locks and the leftovers of killed processes are hidden files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@families
def test_a_network_reads_the_same_from_the_cache(family: str, tmp_path: Path) -> None:
    backbone = TINY[family]()
    cache = built(backbone, tmp_path / "cache")
    asked = [PROMPTS[3], PROMPTS[0], PROMPTS[3]]
    cached, expected = cache.encode(asked), backbone.encode(asked)
    assert cached.tensors.keys() == expected.tensors.keys()
    x = torch.randn(backbone.latent_shape(3, 32, 32, frames_of(backbone)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [
            backbone.predict(backbone.denoiser, x, 500.0, backbone.stage_cond(cond, FULL, FULL))[0]
            for cond in (cached, expected)
        ]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)
    for name, tensor in backbone.null(2).tensors.items():
        torch.testing.assert_close(cache.null(2).tensors[name], tensor.detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["pixart", "wan"])
def test_the_filling_of_short_prompts_takes_no_room(family: str, tmp_path: Path) -> None:
    backbone = TINY[family]()
    build_cache(backbone, ["a"], tmp_path / "short", shard_prompts=4)
    build_cache(backbone, ["a very long prompt"], tmp_path / "long", shard_prompts=4)
    sizes = [(tmp_path / name / "shard-00000.safetensors").stat().st_size for name in ("short", "long")]
    assert sizes[1] - sizes[0] > 10 * 8 * 4  # ten more rows of at least eight numbers


def test_an_interrupted_build_that_goes_on_equals_one_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = TINY["wan"]()
    built(backbone, tmp_path / "whole")
    real = module.write_shard

    def fail(folder: Path, shard: int, *rest: Any) -> None:
        if shard == 1:
            raise KeyboardInterrupt
        real(folder, shard, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_shard", fail)
        built(backbone, tmp_path / "parts")
    with pytest.raises(RMDError, match=r"is not complete: run the cache's `rmd cache` command again$"):
        PromptCache(tmp_path / "parts")
    first = (tmp_path / "parts" / "shard-00000.safetensors").stat().st_mtime_ns
    built(backbone, tmp_path / "parts")
    assert (tmp_path / "parts" / "shard-00000.safetensors").stat().st_mtime_ns == first
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_workers_share_the_shards(tmp_path: Path) -> None:
    backbone = TINY["sd3"]()
    built(backbone, tmp_path / "one")
    seen: list[tuple[int, int]] = []
    assert not build_cache(backbone, PROMPTS, tmp_path / "two", shard_prompts=2, batch_size=2, worker=(1, 2))
    assert not (tmp_path / "two" / INDEX).exists()
    assert build_cache(
        backbone, PROMPTS, tmp_path / "two", shard_prompts=2, batch_size=2, worker=(0, 2),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(2, 2)]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_index_says_where_every_prompt_is(tmp_path: Path) -> None:
    built(TINY["sdxl"](), tmp_path / "cache")
    table = parquet.read_table(tmp_path / "cache" / INDEX)
    assert table.column_names == ["prompt", "hash", "shard", "row"]
    assert table.column("prompt").to_pylist() == PROMPTS
    assert table.column("shard").to_pylist() == [0, 0, 1, 1] and table.column("row").to_pylist() == [0, 1, 0, 1]


def test_a_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    built(TINY["sdxl"](), tmp_path)
    assert verify_cache(tmp_path) == 2
    path = tmp_path / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RMDError, match=r"shard-00001\.safetensors is damaged: remove it and run"):
        verify_cache(tmp_path)
    path.unlink()
    with pytest.raises(RMDError, match=r"lacks shard-00001\.safetensors: run the cache's `rmd cache` command again$"):
        verify_cache(tmp_path)


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    backbone = TINY["sdxl"]()
    cache = built(backbone, tmp_path / "cache")
    cache.check(TINY["sdxl"]())
    with pytest.raises(RMDError, match=r"belongs to the family sdxl, not to sd3: build one with"):
        cache.check(TINY["sd3"]())
    other = TINY["sdxl"]()
    before = encoders_key(other)
    with torch.no_grad():
        next(other.pipe.text_encoder_2.parameters()).add_(0.01)
    assert encoders_key(other) != before
    with pytest.raises(
        RMDError, match=r"was made by other text encoders than this teacher's: build one with `rmd cache`"
    ):
        cache.check(other)
    with pytest.raises(RMDError, match=r"holds a cache of other prompts or other encoders: choose another --out$"):
        build_cache(other, PROMPTS, tmp_path / "cache", shard_prompts=2)
    with pytest.raises(RMDError, match=r"^the prompt 'a cat' is not in the cache .*: build a cache of these prompts$"):
        cache.encode(["a cat"])


def test_what_is_no_cache_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"is not a cache of prompts, since it has no meta\.json: build one with"):
        PromptCache(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RMDError, match=r"is neither empty nor a cache: choose another --out$"):
        build_cache(TINY["sdxl"](), PROMPTS, tmp_path)
    (tmp_path / META).write_text("{", encoding="utf-8")
    with pytest.raises(RMDError, match=r"meta\.json is not valid JSON"):
        verify_cache(tmp_path)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_a_run_from_the_cache_is_the_run(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    TINY[family]().pipe.save_pretrained("teacher")
    prompts = write_prompts(tmp_path)
    arguments = ["cache", str(prompts), "--teacher", "teacher", "--out", "cache", "--shard", "3", "--device", "cpu"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "4 prompts in cache; use it with data.cache=cache\n"
    assert main(["cache", "--verify", "--out", "cache"]) == 0
    assert capsys.readouterr().out == "cache: 2 shards match their checksums\n"
    losses = []
    for cached in (None, "cache"):
        recipe = recipe_of(family, Path("teacher"), "lora", train={"iterations": 2})
        data = recipe.data.model_copy(update={"prompts": str(prompts), "cache": cached})
        trainer = Trainer(recipe.model_copy(update={"data": data}), TINY[family](), tmp_path / str(cached))
        if cached:
            monkeypatch.setattr(trainer.backbone, "encode", None)
            monkeypatch.setattr(trainer.backbone, "null", None)
        losses.append([trainer.iterate(iteration)[0]["student_loss"] for iteration in range(2)])
        trainer.train()  # the pictures too take their prompts from the cache
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give PROMPTS and --teacher ID, or --recipe RECIPE"),
        (["p.txt"], "give PROMPTS and --teacher ID, or --recipe RECIPE"),
        (["p.txt", "--teacher", "t", "--worker", "2/2"], "--worker should be I/N with I from 0 to N - 1, but is '2/2'"),
        (["p.txt", "--teacher", "t"], "there is no prompt file p.txt"),
        (["--verify", "--out", "none"], "none is not a cache of prompts"),
    ],
)
def test_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["cache", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"rmd: {sentence}") and error.count("\n") == 1
