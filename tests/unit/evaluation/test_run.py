"""The one path from samples to a row: what renders themselves score, and which metrics a row holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from rmd.common.errors import RMDError
from rmd.core.metrics import high_frequency
from rmd.core.plan import Stage
from rmd.evaluation import metrics
from rmd.evaluation.metrics import METRICS, metrics_of
from rmd.evaluation.protocol import SAMPLES_PER_PROMPT, Samples
from rmd.evaluation.run import evaluate
from rmd.worlds.base import Assessment, Measured
from rmd.worlds.dataset import SceneSet
from rmd.worlds.picture import PictureJudge
from rmd.worlds.references import References
from rmd.worlds.registry import WORLDS
from rmd.worlds.still.dataset import make_scenes
from rmd.worlds.still.world import WORLD

SCENES = WORLDS.get("scenes")


@dataclass(frozen=True)
class Known:
    """A contender whose samples are known."""

    samples: Samples
    name: str = "renders"
    label: str = "renders"

    def sample(
        self, prompts: object, *, seed: int, size: Stage, batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> Samples:  # fmt: skip
        return self.samples


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return make_scenes(24, seed=5, training=False)


@pytest.fixture(scope="module")
def judge(scenes: SceneSet) -> PictureJudge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WORLD.untrained_judge().eval()
    pixels = scenes.pixels(torch.arange(24))
    features = network.assess(pixels, scenes.attributes).features
    references = References({"renders": features, "teacher": features.flip(0)}, high_frequency(pixels))
    return PictureJudge(network, references, WORLD.asked)


def known(scenes: SceneSet) -> tuple[Known, list[str]]:
    prompts = [text for text in scenes.captions[:12] for _ in range(SAMPLES_PER_PROMPT)]
    return Known(Samples(scenes.pixels(torch.arange(24)), 2.4, 2.5, 3.0, 240)), prompts


def test_the_row_of_the_renders_themselves(scenes: SceneSet, judge: PictureJudge) -> None:
    contender, prompts = known(scenes)
    row = evaluate(contender, SCENES, judge, prompts, seed=0).row
    assert tuple(row.measures) == SCENES.metrics
    assert row.value("high_frequency") == pytest.approx(1.0)
    assert row.value("frechet_distance") == pytest.approx(0.0, abs=1e-3)
    assert 0 <= row.value("attributes") <= 1 and set(row.measures["attributes"].parts) >= {"layout", "colour_a"}
    assert row.nfe == 10
    assert row.seconds_per_image == pytest.approx(0.1)
    assert row.speedup == 1.0
    assert row.seconds_end_to_end == pytest.approx(0.125)
    assert contender.samples.overhead == pytest.approx(2.5 / 2.4 - 1)


def test_a_metric_of_another_package_is_in_the_row(
    scenes: SceneSet, judge: PictureJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender, prompts = known(scenes)
    monkeypatch.setattr(METRICS, "_loaded", dict(METRICS._loaded))

    def half(assessment: Assessment) -> Measured:
        return Measured(value=assessment.count / 2)

    ours = metrics.Metric("half", "half", compute=half, applies=lambda world: not world.moving)
    METRICS.register("half", ours)
    METRICS.register("other", replace(ours, name="other", applies=lambda world: world.moving))
    row = evaluate(contender, SCENES, judge, prompts, seed=0).row
    assert tuple(row.measures) == (*SCENES.metrics, "half") and row.value("half") == 12
    assert metrics_of(WORLDS.get("moving-scenes"))[-1] == "other"
    few = evaluate(contender, SCENES, judge, prompts, seed=0, metrics=("half",)).row
    assert tuple(few.measures) == ("half",)
    with pytest.raises(RMDError, match="the row 'renders' has no measure 'attributes'"):
        few.value("attributes")


def test_a_prompt_of_another_world_is_one_sentence(scenes: SceneSet, judge: PictureJudge) -> None:
    contender, prompts = known(scenes)
    with pytest.raises(RMDError, match=r"^'a cat' is not a caption of the scenes: word it like"):
        evaluate(contender, SCENES, judge, ["a cat", *prompts[1:]], seed=0)
