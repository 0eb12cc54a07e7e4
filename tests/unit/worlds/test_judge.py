"""The judge: its inputs and outputs, and that it learns."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from research.scenes.checkpoint import read_whole
from research.scenes.judge import attribute_loss, save_judge, train_judge
from rmd.common.errors import RMDError
from rmd.worlds.dataset import SceneSet
from rmd.worlds.judge import Judge, legibility, load_judge, log_odds
from rmd.worlds.still.dataset import make_scenes
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, ATTRIBUTE_SIZES, NONE


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return make_scenes(64, seed=6, training=False)


def seeded_judge() -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Judge(ATTRIBUTE_SIZES)


def test_shapes(scenes: SceneSet) -> None:
    logits, features = seeded_judge()(scenes.pixels(torch.arange(3)))
    assert {name: tuple(values.shape) for name, values in logits.items()} == {
        name: (3, size) for name, size in ATTRIBUTE_SIZES.items()
    }
    assert features.shape == (3, 480)


def test_features_see_fine_texture(scenes: SceneSet) -> None:
    # The channel statistics of the shallow levels change when detail is blurred away.
    pixels = scenes.pixels(torch.arange(8))
    blurred = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    judge = seeded_judge()
    with torch.no_grad():
        sharp, soft = judge(pixels)[1][:, 96:], judge(blurred)[1][:, 96:]
    assert float((sharp - soft).abs().mean()) > 0.02


def test_assessment(scenes: SceneSet) -> None:
    judge, pixels = seeded_judge().eval(), scenes.pixels(torch.arange(10))
    with torch.no_grad():
        logits, features = judge(pixels)
    said = torch.stack([logits[name].argmax(1) for name in ATTRIBUTE_NAMES], 1)
    asked = said.clone()
    asked[0, 2] = (asked[0, 2] + 1) % ATTRIBUTE_SIZES["shape_a"]
    asked[1] = NONE
    read = judge.assess(pixels, asked, chunk=4)
    expected = torch.ones(10, len(ATTRIBUTE_NAMES), dtype=torch.bool)
    expected[0, 2] = False
    assert torch.equal(read.right, expected)  # attributes that are not requested count as right
    assert torch.allclose(read.features, features, atol=1e-5)
    assert torch.equal(read.odds.isnan(), asked == NONE)
    p = logits["shape_a"].softmax(1)[0, asked[0, 2]]
    assert float(read.odds[0, 2]) == pytest.approx(math.log(p / (1 - p)), abs=1e-4)


def test_log_odds_in_closed_form() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.2, 0.3, 0.5]], dtype=torch.float64)
    odds = log_odds(p.log() + 7, torch.tensor([0, 0, NONE]))
    assert odds[:2].tolist() == pytest.approx([0.0, math.log(9)], abs=1e-12)
    assert math.isnan(odds[2])
    extreme = log_odds(torch.tensor([[300.0, -300.0]]), torch.tensor([0]))
    assert float(extreme) == 600.0  # a probability would round to 1, and lose how clear the picture is


def test_legibility_averages_what_is_asked() -> None:
    odds = torch.tensor([[1.0, 3.0], [math.nan, 4.0], [6.0, math.nan]])
    measured = legibility(odds)
    assert measured.value == pytest.approx(4.0)
    assert measured.interval == pytest.approx((4 - 1.96 * 2 / 3**0.5, 4 + 1.96 * 2 / 3**0.5), abs=1e-3)
    assert legibility(odds[:1]).interval is None


def test_the_loss_in_closed_form() -> None:
    flat = {name: torch.zeros(2, size) for name, size in ATTRIBUTE_SIZES.items()}
    single = torch.tensor([[0, 1, 2, 3, 4, 1, NONE, NONE, NONE]])
    pair = torch.tensor([[5, 1, 2, 3, 4, NONE, 0, 0, 0]])
    logs = {name: math.log(size) for name, size in ATTRIBUTE_SIZES.items()}
    alone = sum(value for name, value in logs.items() if not name.endswith("_b"))
    one = {name: values[:1] for name, values in flat.items()}
    assert float(attribute_loss(one, single)) == pytest.approx(alone)
    # The share of an attribute that some scenes lack is that among the others.
    assert float(attribute_loss(flat, torch.cat([single, pair]))) == pytest.approx(sum(logs.values()))
    certain = {name: values.clone() for name, values in one.items()}
    for name, answer in zip(ATTRIBUTE_NAMES, single[0].tolist(), strict=True):
        certain[name][0, answer] = 100.0
    assert float(attribute_loss(certain, single)) == pytest.approx(0, abs=1e-6)


@pytest.mark.heavy
def test_it_learns(scenes: SceneSet) -> None:
    judge = seeded_judge()

    @torch.no_grad()
    def loss() -> float:
        return float(attribute_loss(judge(scenes.pixels(torch.arange(64)))[0], scenes.attributes))

    before, lines = loss(), list[str]()
    train_judge(judge, scenes, iterations=20, batch_size=16, log=lines.append)
    assert loss() < 0.8 * before
    assert not judge.training
    shown = [float(re.findall(r"loss ([\d.]+)", line)[0]) for line in lines]
    assert len(shown) == 2 and all(map(math.isfinite, shown)) and shown[1] < 0.9 * shown[0]


@pytest.mark.heavy
def test_a_resumed_training_is_the_same_to_the_last_bit(scenes: SceneSet, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("judge step 3/"):
            raise Killed

    path, states = tmp_path / "judge.pt", []
    with pytest.raises(Killed):
        train_judge(seeded_judge(), scenes, iterations=4, batch_size=16, checkpoint=path, every=2, log=kill)
    assert read_whole(path)["step"] == 2
    for checkpoint in (None, path):
        judge = seeded_judge()
        train_judge(judge, scenes, iterations=4, batch_size=16, checkpoint=checkpoint, log=lambda _: None)
        states.append(judge.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_saved_and_loaded(tmp_path: Path, scenes: SceneSet) -> None:
    judge = seeded_judge()
    save_judge(judge, tmp_path / "new" / "judge.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["judge.safetensors"]
    loaded = load_judge(tmp_path / "new", seeded_judge())
    assert not loaded.training
    for name, value in judge.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name


def test_no_judge(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"no judge in .*: build one with `python -m research.scenes train-judge"):
        load_judge(tmp_path, seeded_judge())
