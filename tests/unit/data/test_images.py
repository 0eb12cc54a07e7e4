"""Real images: their order, captions and scaling, and a training run that uses them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import TINY
from helpers import PROMPTS, LinearBackbone, make_recipe, tiny_sdxl, write_prompts
from PIL import Image
from torch import Tensor

from rmd.bench.training import evaluations
from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.data.images import ImageFolder, Images, load_images
from rmd.recipes.schema import Recipe
from rmd.train.loop import Trainer

GAN = {"name": "dmd2", "tau": "all", "adversarial": 0.1, "fake_updates": 2}
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three pictures, each of one colour and wider than it is high."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, (colour, suffix) in enumerate(zip(COLOURS, ("png", "jpg", "webp"), strict=True)):
        Image.new("RGB", (80, 40), colour).save(pictures / f"{i}.{suffix}", quality=100)
        (pictures / f"{i}.txt").write_text(PROMPTS[i] + "\n", encoding="utf-8")
    return pictures


def recipe_of(folder: Path | str | None, prompts: Path, mode: str = "full", **changes: dict[str, object]) -> Recipe:
    data = {"prompts": str(prompts)} | ({} if folder is None else {"images": str(folder)})
    plan = {"sides": [32], "thresholds": []}
    return make_recipe(
        prompts, mode, plan=plan, crossing={"within": "fresh"}, data=data,
        **{"method": GAN, **changes},
    )  # fmt: skip


def test_a_folders_pictures_cover_the_size_and_come_with_their_captions(folder: Path) -> None:
    images = Images(ImageFolder.read(folder), Stage(1, 16, 24), seed=3)
    pixels, captions = images.batch(range(3))
    assert pixels.shape == (3, 3, 16, 24) and sorted(captions) == sorted(PROMPTS[:3])
    for picture, caption in zip(pixels, captions, strict=True):
        expected = torch.tensor(COLOURS[PROMPTS.index(caption)]) / 127.5 - 1
        torch.testing.assert_close(picture.mean((1, 2)), expected, atol=0.03, rtol=0)
    assert sorted(images.batch(range(3, 6))[1]) == sorted(captions)  # another epoch
    assert images.batch([4])[1] == [images.batch(range(3, 6))[1][1]]


def test_scenes_are_rendered_at_the_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rmd.data.images.RENDERS", 6)
    images = load_images(recipe_of("scenes", write_prompts(tmp_path)))
    assert images is not None
    pixels, captions = images.batch(range(4))
    assert pixels.shape == (4, 3, 32, 32) and float(pixels.std()) > 0.1 and len(set(captions)) == 4


def test_encoding_undoes_decoding() -> None:
    """With a VAE that changes nothing, the scaling on encoding is the inverse of that on decoding."""
    vae = SimpleNamespace(
        dtype=torch.float32,
        config=SimpleNamespace(
            scaling_factor=0.7, shift_factor=0.2, latents_mean=[0.1, -0.3, 2.0], latents_std=[1.5, 0.5, 3.0],
            force_upcast=True,
        ),
        encode=lambda images: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: images)),
        decode=lambda latents, return_dict: (latents,),
    )  # fmt: skip
    backbone = _Decoding()
    backbone.pipe.vae = vae
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    torch.testing.assert_close(backbone.decode(backbone.encode_images(images)), images)


class _Decoding(LinearBackbone):
    def decode(self, x0: Tensor) -> Tensor:
        return super(LinearBackbone, self).decode(x0)


def test_real_vaes_encode_to_latents_of_the_networks_shape() -> None:
    for family in sorted(set(TINY) - {"wan"}):
        backbone = TINY[family]()
        assert backbone.encode_images(torch.zeros(2, 3, 16, 24)).shape == backbone.latent_shape(2, 16, 24)
    with pytest.raises(RMDError, match=r"^wan generates videos: it cannot learn from real images$"):
        TINY["wan"]().encode_images(torch.zeros(1, 3, 16, 16))


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("mode", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_run_resumes_exactly_and_spends_what_is_counted(mode: str, folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, write_prompts(tmp_path), mode, train={"iterations": 2, "checkpoint_every": 1})
    whole = Trainer(recipe, tiny_sdxl(), tmp_path / "whole")
    assert whole.train() == 2
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"iterations": 1})})
    assert Trainer(short, tiny_sdxl(), tmp_path / "parts").train() == 1
    again = Trainer(recipe, tiny_sdxl(), tmp_path / "parts")
    assert again.train(resume=True) == 2
    for role in ("student", "fake"):
        one, two = whole.roles.state(role), again.roles.state(role)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    spent, counted = whole.method.evaluations, 0.0
    for iteration in range(2):
        index = whole.method.draw_step(iteration).index
        counted += evaluations(index, fake_updates=2, branches=2, adversarial=True)
    assert spent["student"] + 2 * spent["teacher"] + spent["fake"] == counted


def test_one_sentence(folder: Path, tmp_path: Path) -> None:
    prompts, plain = write_prompts(tmp_path), {**GAN, "adversarial": 0.0}
    for recipe, sentence in (
        (recipe_of(None, prompts), "method.adversarial needs real images: set data.images to a folder of them"),
        (
            recipe_of(folder, prompts, method=plain),
            "data.images has no effect with this method: set",
        ),
        (
            recipe_of(folder, prompts, method={"name": "tdm", "fake_updates": 2}),
            "data.images has no effect with this method: set",
        ),
        (
            recipe_of(folder, prompts, train={"gradient_checkpointing": True}),
            "method.adversarial does not work with gradient checkpointing",
        ),
        (recipe_of(tmp_path / "none", prompts), f"data.images: there is no folder {tmp_path / 'none'}"),
        (recipe_of(tmp_path, prompts), f"data.images: there is no picture (.png, .jpg, .jpeg, .webp) in {tmp_path}"),
    ):
        with pytest.raises(RMDError) as caught:
            load_images(recipe)
        assert str(caught.value).startswith(sentence)
    assert load_images(recipe_of(None, prompts, method=plain)) is None
    (folder / "1.txt").unlink()
    with pytest.raises(RMDError, match=r"1\.jpg has no caption: write it to 1\.txt beside it$"):
        ImageFolder.read(folder)
    (folder / "1.txt").write_text("a", encoding="utf-8")
    (folder / "0.png").write_text("no picture")
    with pytest.raises(RMDError, match=r"0\.png is not a picture, or is damaged: remove it$"):
        ImageFolder.read(folder)
