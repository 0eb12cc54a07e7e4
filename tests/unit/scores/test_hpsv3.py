"""HPSv3 with a small random network, against arithmetic that is written out, from picture and prompt to score."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_reference import FRAMES, MERGE, PATCH, later, random_state, reference, write_published
from torch import Tensor
from transformers import Qwen2VLConfig

from rmd.common.errors import RMDError
from rmd.scores.hpsv3 import HPSV3, QWEN, from_published, instruction
from rmd.scores.metrics import METRICS, Place

PROMPTS = ["a cat with {braces}", "two dogs on grass, and a prompt that is longer"]
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.effect_noise(size, 80).convert("RGB") for size in ((512, 512), (700, 300))]


def patches_of(image: Image.Image, width: int, height: int) -> Tensor:
    """Scale a picture and cut it patch by patch, four that are merged after each other, twice for two frames."""
    values = np.array(image.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    pixels = (torch.from_numpy(values) - torch.tensor(MEAN)) / torch.tensor(SPREAD)
    rows = []
    for top in range(0, height, MERGE * PATCH):
        for left in range(0, width, MERGE * PATCH):
            for y in range(top, top + MERGE * PATCH, PATCH):
                for x in range(left, left + MERGE * PATCH, PATCH):
                    patch = pixels[y : y + PATCH, x : x + PATCH].permute(2, 0, 1)
                    rows.append(torch.stack([patch] * FRAMES, 1).flatten())
    return torch.stack(rows)


def conversation(prompt: str, count: int) -> str:
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * count
        + "<|vision_end|>"
        + instruction().replace("{text_prompt}", prompt)
        + "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_from_pictures_and_prompts_to_scores(tmp_path: Path, pictures: list[Image.Image]) -> None:
    state, tokenizer = write_published(tmp_path)
    scorer = METRICS["hpsv3"].load(Place(tmp_path))
    expected = []
    for image, prompt, (width, height) in zip(pictures, PROMPTS, ((448, 448), (672, 280)), strict=True):
        grid = height // PATCH, width // PATCH
        ids = tokenizer.encode(conversation(prompt, grid[0] * grid[1] // MERGE**2)).ids
        patches = patches_of(image, width, height)
        expected.append(
            reference(state, patches, grid, torch.tensor(ids), tokenizer.token_to_id("<|Reward|>"))[0]
        )  # fmt: skip
    scores = scorer(pictures, PROMPTS)
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert scores.dtype == torch.float32 and float(scores.std()) > 1e-3
    alone = torch.cat([scorer([image], [prompt]) for image, prompt in zip(pictures, PROMPTS, strict=True)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)
    first, second = scorer.preparation.networks
    assert (first.name, second.name) == (HPSV3, QWEN) and set(second.files) == {"config.json", "tokenizer.json"}


def test_tensors_may_have_the_names_of_later_versions(tmp_path: Path) -> None:
    write_published(tmp_path)
    config = Qwen2VLConfig.from_json_file(tmp_path / QWEN / "config.json")
    state = random_state(500)
    models = [from_published(each, config, 500)[0] for each in (state, {later(k): v for k, v in state.items()})]
    first, second = (model.state_dict() for model in models)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["visual.merger.ln_q.bias"], state["visual.merger.ln_q.bias"])
    assert torch.equal(first["language_model.norm.weight"], state["model.norm.weight"])


def test_the_head_computes_in_float32(tmp_path: Path, pictures: list[Image.Image]) -> None:
    write_published(tmp_path)
    half = METRICS["hpsv3"].load(Place(tmp_path, dtype=torch.bfloat16))
    whole = METRICS["hpsv3"].load(Place(tmp_path))
    assert {value.dtype for value in half.head.parameters()} == {torch.float32}
    assert {value.dtype for value in half.model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(half(pictures[:1], PROMPTS[:1]), whole(pictures[:1], PROMPTS[:1]), atol=0.5, rtol=0)


def test_the_instruction_is_that_of_the_authors() -> None:
    """It was compared with their release 1.0.0; the network was trained with every one of its spaces."""
    digest = hashlib.sha256(instruction().encode()).hexdigest()
    assert digest == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
    assert instruction().count("{text_prompt}") == 1


def test_prompts_do_not_contain_the_tokens_of_the_score(tmp_path: Path, pictures: list[Image.Image]) -> None:
    write_published(tmp_path)
    scorer = METRICS["hpsv3"].load(Place(tmp_path))
    with pytest.raises(RMDError, match=r"^the prompt 'a <\|Reward\|>' contains <\|Reward\|>, which has a meaning of "):
        scorer(pictures[:1], ["a <|Reward|>"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    write_published(tmp_path)
    path = tmp_path / QWEN / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] != "<|im_end|>"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RMDError, match=r"^the tokenizer of Qwen/Qwen2-VL-7B-Instruct lacks <\|im_end\|>: download"):
        METRICS["hpsv3"].load(Place(tmp_path))
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(RMDError, match=r"tokenizer\.json is damaged: download it again$"):
        METRICS["hpsv3"].load(Place(tmp_path))
    (tmp_path / QWEN / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RMDError, match=r"config\.json is damaged: download it again$"):
        METRICS["hpsv3"].load(Place(tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rm_head.3.weight": None}, "this is no checkpoint of HPSv3: its head lacks the tensor '3.weight'"),
        ({"rm_head.5.bias": None}, "this is no head of HPSv3: 1 tensors, such as 5.bias, are missing"),
        ({"visual.merger.ln_q.bias": torch.ones(3)}, "this is no checkpoint of HPSv3: 1 tensors, such as visual.merg"),
        (
            {"model.embed_tokens.weight": torch.ones(499, 32)},
            "this is no checkpoint of HPSv3: it knows 499 tokens, but the tokenizer has 500",
        ),
        ({"more": torch.ones(1)}, "this is no checkpoint of HPSv3: 1 tensors, such as language_model.more, are"),
    ],
)
def test_another_checkpoint_is_refused(change: dict[str, Tensor | None], sentence: str, tmp_path: Path) -> None:
    write_published(tmp_path)
    config = Qwen2VLConfig.from_json_file(tmp_path / QWEN / "config.json")
    state = {name: value for name, value in {**random_state(500), **change}.items() if value is not None}
    with pytest.raises(RMDError) as error:
        from_published(state, config, 500)
    assert str(error.value).startswith(sentence)
