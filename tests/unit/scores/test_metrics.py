"""The image metrics with small random networks, against arithmetic that is written out, from picture to score."""

from __future__ import annotations

import pytest
import torch
from clip_reference import SIDE, VOCABULARY, Network, random_network, write_tokenizer
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTokenizer

from rmd.common.errors import RMDError
from rmd.scores.clip import END, VIT_G14, VIT_H14, Heads, from_open_clip, tokens
from rmd.scores.metrics import AESTHETIC, AESTHETIC_V1, METRICS, OPENAI, Place, chosen, token_ids
from rmd.scores.pixels import clip_pixels, padded_pixels, square_pixels

PROMPTS = ["a cat", "two dogs on grass", "x" * 200]
PICKSCORE = "yuvalkirstain/PickScore_v1"


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {
        OPENAI: random_network(64, 64, Heads(64, 64, "quick_gelu"), seed=1),
        PICKSCORE: random_network(64, 64, Heads(64, 64), seed=2),
        "xswu/HPSv2": random_network(80, 64, VIT_H14, seed=3),
        "laion/CLIP-ViT-g-14-laion2B-s12B-b42K": random_network(88, 64, VIT_G14, seed=4),
    }


@pytest.fixture(scope="module")
def heads() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(20, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    return {AESTHETIC: deep.eval(), AESTHETIC_V1: nn.Linear(20, 1)}


@pytest.fixture(scope="module")
def place(networks: dict[str, Network], heads: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Write all networks into a folder as their authors publish them."""
    root = tmp_path_factory.mktemp("weights")
    for name in (OPENAI, PICKSCORE):
        from_open_clip(networks[name].state, networks[name].heads).save_pretrained(root / name)
    write_tokenizer(root / OPENAI)
    published = {
        "xswu/HPSv2": ("HPS_v2.1_compressed.pt", {"state_dict": networks["xswu/HPSv2"].state, "epoch": 3}),
        "laion/CLIP-ViT-g-14-laion2B-s12B-b42K": (
            "open_clip_pytorch_model.bin", networks["laion/CLIP-ViT-g-14-laion2B-s12B-b42K"].state,
        ),
        "christophschuhmann/improved-aesthetic-predictor": (
            AESTHETIC, {f"layers.{name}": value for name, value in heads[AESTHETIC].state_dict().items()}
        ),
        "LAION-AI/aesthetic-predictor": (AESTHETIC_V1, heads[AESTHETIC_V1].state_dict()),
    }  # fmt: skip
    for repository, (name, state) in published.items():
        (root / repository).mkdir(parents=True)
        torch.save(state, root / repository / name)
    return Place(root, tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.effect_noise(size, 80).convert("RGB") for size in ((40, 40), (60, 36), (30, 54))]


def texts(place: Place, prefix: str = "") -> Tensor:
    assert place.folder is not None
    tokenizer = CLIPTokenizer.from_pretrained(place.folder / OPENAI)
    return tokens(token_ids(tokenizer, [prefix + prompt for prompt in PROMPTS]))[0]


def cosines(network: Network, pixels: Tensor, ids: Tensor) -> Tensor:
    return (network.embed_images(pixels) * network.embed_texts(ids)).sum(-1)


@pytest.mark.parametrize("name", ["clip", "clip-dmd2", "hps", "hps-legacy", "pickscore"])
def test_scores_of_texts(name: str, place: Place, networks: dict[str, Network], pictures: list[Image.Image]) -> None:
    scorer = METRICS[name].load(place)
    repository = scorer.preparation.networks[0].name
    network, prefix, scale = networks[repository], "", 100.0
    if name == "clip-dmd2":
        pixels, prefix = [square_pixels(image, SIDE) for image in pictures], "A photo depicts "
    elif name.startswith("hps"):
        pixels = [padded_pixels(image, SIDE, antialias=name == "hps") for image in pictures]
    else:
        pixels = [clip_pixels(image, SIDE) for image in pictures]
    if name == "pickscore":
        scale = float(network.state["logit_scale"].exp())
    expected = scale * cosines(network, torch.stack(pixels), texts(place, prefix))
    torch.testing.assert_close(scorer(pictures, PROMPTS), expected, atol=1e-5 * scale, rtol=0)
    assert scorer.preparation.settings["side"] == SIDE and all(scorer.preparation.networks[0].files.values())


@pytest.mark.parametrize(("name", "file"), [("aesthetic", AESTHETIC), ("aesthetic-v1", AESTHETIC_V1)])
def test_aesthetic_scores_look_at_no_prompt(
    name: str, file: str, place: Place, networks: dict[str, Network], heads: dict[str, nn.Module],
    pictures: list[Image.Image],
) -> None:  # fmt: skip
    scorer = METRICS[name].load(place)
    embeddings = networks[OPENAI].embed_images(torch.stack([clip_pixels(image, SIDE) for image in pictures]))
    expected = heads[file](embeddings)[:, 0].detach()
    torch.testing.assert_close(scorer(pictures, PROMPTS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scorer(pictures, PROMPTS[::-1]), expected, atol=1e-5, rtol=0)
    assert scorer.preparation.networks[0].name == OPENAI


def test_a_score_does_not_depend_on_its_batch(place: Place, pictures: list[Image.Image]) -> None:
    scorer = METRICS["hps"].load(place)
    together = scorer(pictures, PROMPTS)
    alone = torch.cat([scorer([image], [prompt]) for image, prompt in zip(pictures, PROMPTS, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_the_two_ways_of_scaling_are_two_protocols(place: Place) -> None:
    smooth, legacy = (METRICS[name].load(place).preparation for name in ("hps", "hps-legacy"))
    assert smooth != legacy and smooth.networks == legacy.networks


def test_every_letter_is_read_and_long_prompts_are_cut(place: Place) -> None:
    ids = texts(place)
    assert ids.shape == (3, 77) and ids.max() < VOCABULARY
    assert ids[0].nonzero().numel() == 2 + len("acat") and ids[2, -1] == END


def test_metrics_are_chosen_by_name() -> None:
    assert [metric.name for metric in chosen(["hps", "clip", "hps"], METRICS)] == ["hps", "clip"]
    with pytest.raises(RMDError, match=r"^unknown metric 'hpss' \(did you mean 'hps'\?\)"):
        chosen(["hpss"], METRICS)
    with pytest.raises(RMDError, match=r"^no metric is named: use some of hps, "):
        chosen([], METRICS)
    assert [name for name, metric in METRICS.items() if metric.name != name] == []
