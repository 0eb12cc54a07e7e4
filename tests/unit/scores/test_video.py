"""The metrics of clips: closed forms, written-out arithmetic, and small random networks from the file to the score."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip_reference import SIDE, random_network
from PIL import Image
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from rmd.common.clips import Clip, read_clip, save_clip
from rmd.common.errors import RMDError
from rmd.scores.clip import VIT_L14, Heads, from_open_clip
from rmd.scores.kinds import CLIPS, Shape, common_shape
from rmd.scores.metrics import AESTHETIC_V1, OPENAI, Place
from rmd.scores.pixels import clip_pixels, squashed_pixels
from rmd.scores.result import Making, compare, read_result, write_result
from rmd.scores.run import find_pictures, score_pictures
from rmd.scores.text import scores_text
from rmd.scores.video import PREFIX, VIDEO_METRICS, consistency, motion, steadiness

COUNT = 40
"""Frames of the clips: more than a network sees at once."""


def grey(*levels: float, side: int = 10, fps: float = 8) -> Clip:
    """Return a clip of even grey frames."""
    return Clip([Image.new("RGB", (side, side), (int(level),) * 3) for level in levels], fps)


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_consistency_in_closed_form() -> None:
    """Unit features at angles 0, a and 2a give the mean of (cos a + cos a) / 2 and (cos a + cos 2a) / 2."""
    for a in (0.0, 0.3, 1.2):
        turned = torch.tensor([[np.cos(k * a), np.sin(k * a)] for k in range(3)]) * torch.tensor([[1.0], [2.0], [7.0]])
        expected = (np.cos(a) + (np.cos(a) + max(0.0, np.cos(2 * a))) / 2) / 2
        assert consistency(turned) == pytest.approx(expected, abs=1e-6)
    assert consistency(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 0


def test_steadiness_in_closed_form() -> None:
    assert steadiness(grey(7, 7, 7)) == 1
    assert steadiness(grey(0, 255)) == 0
    assert steadiness(grey(0, 10, 40)) == pytest.approx(1 - (10 + 30) / 2 / 255)


def test_motion_in_closed_form() -> None:
    """A white square that appears in black gives the changed share of the pixels over 5 %, at most 1."""
    assert motion(grey(7, 7, 7)) == 0 and motion(grey(0, 255)) == 1
    assert motion(grey(0, 51, 0)) == pytest.approx(0.2)
    for side in (1, 2, 3):
        spot = Image.new("RGB", (20, 20))
        spot.paste((255, 255, 255), (0, 0, side, side))
        clip = Clip([Image.new("RGB", (20, 20)), spot], 8)
        assert motion(clip) == pytest.approx(min(1, side**2 / 20))


def test_motion_is_measured_at_eight_frames_per_second() -> None:
    """At 24 frames per second, every third frame counts; flicker between them does not."""
    clip = grey(0, 255, 255, 51, 255, 255, 0, fps=24)
    assert motion(clip) == pytest.approx(0.2)
    assert motion(Clip(clip.frames, 8)) == pytest.approx(0.6)
    with pytest.raises(
        RMDError, match=r"^a clip of 3 frames at 24 per second is too short: this metric needs at least 4"
    ):
        motion(grey(0, 1, 2, fps=24))
    with pytest.raises(
        RMDError, match=r"^a clip of 1 frames at 8 per second is too short: this metric needs at least 2"
    ):
        steadiness(grey(0))


# --- small random networks --------------------------------------------------------------------------------------------

CLIP, DINO = "openai/clip-vit-large-patch14-336", "facebook/dinov2-large"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("weights")
    for name, seed in ((CLIP, 5), (OPENAI, 6)):
        network = random_network(64, 64, VIT_L14, seed=seed)
        from_open_clip(network.state, Heads(64, 64, "quick_gelu")).save_pretrained(root / name)
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=2, image_size=32)
    Dinov2Model(config).save_pretrained(root / DINO)
    head = torch.nn.Linear(20, 1)
    (root / "LAION-AI" / "aesthetic-predictor").mkdir(parents=True)
    torch.save(head.state_dict(), root / "LAION-AI" / "aesthetic-predictor" / AESTHETIC_V1)
    return Place(root, root / "converted")


def noisy(seed: int, count: int = COUNT) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    still, rows = random.normal(120, 40, (24, 32, 3)), random.normal(0, 12, (count, 24, 32, 3)).cumsum(0)
    return [Image.fromarray((still + change).clip(0, 255).astype(np.uint8)) for change in rows]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clip]:
    """Write clips of every format, and return what is read of them."""
    folder = tmp_path_factory.mktemp("clips")
    for number, suffix in enumerate(CLIPS.suffixes):
        save_clip(noisy(number), folder / f"clip{suffix}", fps=16)
    return {path.suffix: read_clip(path) for path in folder.iterdir()}


def written_out(features: Tensor) -> float:
    """VBench's formula, frame by frame."""
    unit = F.normalize(features, dim=-1)
    similar = [
        (max(0.0, float(unit[i] @ unit[i - 1])) + max(0.0, float(unit[i] @ unit[0]))) / 2 for i in range(1, len(unit))
    ]  # fmt: skip
    return sum(similar) / len(similar)


def expected_values(clip: Clip, place: Place) -> dict[str, float]:
    """The arithmetic of every metric, from the frames."""
    assert place.folder is not None
    pixels = torch.stack([squashed_pixels(frame, SIDE) for frame in clip.frames])
    background = random_network(64, 64, VIT_L14, seed=5).embed_images(pixels)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    squares = [np.asarray(f.resize((32, 32), Image.Resampling.BICUBIC)) / np.float32(255) for f in clip.frames]
    normal = torch.stack([(torch.from_numpy(s).permute(2, 0, 1) - mean) / deviation for s in squares])
    with torch.no_grad():
        subject = Dinov2Model.from_pretrained(place.folder / DINO).eval()(normal).last_hidden_state[:, 0]
    seen = torch.stack([clip_pixels(frame, SIDE) for frame in clip.frames])
    head = torch.load(place.folder / "LAION-AI" / "aesthetic-predictor" / AESTHETIC_V1, weights_only=True)
    beauty = F.linear(random_network(64, 64, VIT_L14, seed=6).embed_images(seen), head["weight"], head["bias"])
    frames = [np.asarray(frame).astype(float) for frame in clip.frames]
    flicker = np.mean([np.abs(a - b).mean() for a, b in pairwise(frames)])
    light = [np.asarray(frame.convert("L")).astype(float).ravel() for frame in clip.frames[::2]]
    most = [np.sort(np.abs(a - b))[::-1][: int(24 * 32 * 0.05)] for a, b in pairwise(light)]
    return {
        "subject-consistency": written_out(subject), "background-consistency": written_out(background),
        "temporal-flickering": (255 - flicker) / 255, "dynamic-degree": float(np.mean([m.mean() for m in most])) / 255,
        "aesthetic": float(beauty.mean()) / 10,
    }  # fmt: skip


@pytest.mark.parametrize("suffix", CLIPS.suffixes)
def test_every_metric_is_its_arithmetic(suffix: str, place: Place, clips: dict[str, Clip]) -> None:
    clip = clips[suffix]
    assert len(clip.frames) == COUNT and clip.fps == pytest.approx(16, abs=0.2)
    if suffix == ".mp4":  # its sides are multiples of 16
        clip = Clip([frame.crop((0, 0, 32, 24)) for frame in clip.frames], clip.fps)
    expected = expected_values(clip, place)
    for name, metric in VIDEO_METRICS.items():
        scorer = metric.load(place)
        (value,) = scorer([clip], ["a prompt"]).tolist()
        assert value == pytest.approx(expected[name.removeprefix(PREFIX)], abs=1e-5), name
        assert "measure" in scorer.preparation.settings and metric.name == name
    assert len(expected) == len(VIDEO_METRICS) == 5


def test_preparations_name_their_networks(place: Place) -> None:
    networks = {name: [n.name for n in m.load(place).preparation.networks] for name, m in VIDEO_METRICS.items()}
    assert networks == {
        f"{PREFIX}subject-consistency": [DINO], f"{PREFIX}background-consistency": [CLIP],
        f"{PREFIX}temporal-flickering": [], f"{PREFIX}dynamic-degree": [],
        f"{PREFIX}aesthetic": [OPENAI, "LAION-AI/aesthetic-predictor"],
    }  # fmt: skip


# --- folders, results and comparisons ---------------------------------------------------------------------------------

PIXELS = [VIDEO_METRICS[f"{PREFIX}{name}"] for name in ("temporal-flickering", "dynamic-degree")]


def write_album(folder: Path, step: int, suffix: str = ".webp") -> None:
    """Write clips that brighten by a step, with the settings of `rmd generate` beside them."""
    folder.mkdir()
    for seed in range(4):
        path = folder / f"{seed}{suffix}"
        save_clip(grey(*(20 + seed + step * k for k in range(6)), side=16).frames, path, fps=8)
        settings = f'{{"version": "0", "model": "m", "prompt": "prompt {seed // 2}", "seed": {seed}}}'
        path.with_name(f"{path.name}.json").write_text(settings, encoding="utf-8")


def test_two_albums_are_scored_and_compared(tmp_path: Path) -> None:
    for name, step in (("a", 5), ("b", 10)):
        write_album(tmp_path / name, step)
        scored = score_pictures(
            find_pictures(str(tmp_path / name), None, kind=CLIPS), PIXELS, Place(), tmp_path / f"{name}-out",
            making=Making(model=name), prompt_set="own", batch_size=1,
        )  # fmt: skip
        assert scored is not None
        result, table = scored
        write_result(result, table, tmp_path / f"{name}-out")
        assert result.scores[PIXELS[0].name].mean == pytest.approx(1 - step / 255, abs=1e-6)
        assert result.scores[PIXELS[1].name].mean == pytest.approx(step / 255, abs=1e-6)
        assert table.prompt.tolist() == [0, 0, 1, 1] and table.seed.tolist() == [0, 1, 2, 3]
    protocol = result.protocol
    assert (protocol.frames, protocol.fps, protocol.image_format, protocol.width) == (6, 8, "webp", 16)
    found = compare(read_result(tmp_path / "b-out"), read_result(tmp_path / "a-out"))
    assert found[PIXELS[1].name].difference == pytest.approx(5 / 255, abs=1e-6) and found[PIXELS[1].name].ahead == 1
    headings = [str(column.header) for column in scores_text(result).columns]
    assert "clips" in headings and "pictures" not in headings


def test_clips_of_one_result_have_one_length_and_rate(tmp_path: Path) -> None:
    write_album(tmp_path / "a", 5)
    save_clip(grey(1, 2, 3, side=16).frames, tmp_path / "a" / "0.webp", fps=8)
    files = sorted((tmp_path / "a").glob("*.webp"))
    with pytest.raises(RMDError) as caught:
        common_shape(files, CLIPS)
    first, second = (f"16 x 16 pixels, {count} frames at 8 per second in WEBP" for count in (3, 6))
    assert str(caught.value) == (
        f"clips of one result have one size and format: {files[0]} has {first}, and {files[1]} has {second}"
    )
    (tmp_path / "a" / "0.webp.json").unlink()
    with pytest.raises(RMDError, match=r"^these clips do not say what their prompts are: give --prompts FILE, "):
        find_pictures(str(tmp_path / "a"), None, kind=CLIPS)


@pytest.mark.parametrize("suffix", CLIPS.suffixes)
@pytest.mark.parametrize(("count", "fps"), [(5, 8), (81, 24), (25, 30)])
def test_the_shape_of_a_clip_is_known_without_reading_it(suffix: str, count: int, fps: int, tmp_path: Path) -> None:
    save_clip(grey(*range(count), side=16).frames, tmp_path / f"x{suffix}", fps=fps)
    shape = common_shape([tmp_path / f"x{suffix}"], CLIPS)
    assert (
        (shape.width, shape.height, shape.frames)
        == (16, 16, count)
        == (16, 16, len(read_clip(tmp_path / f"x{suffix}").frames))
    )
    assert shape.fps == pytest.approx(fps, rel=0.02) and shape.image_format == suffix[1:]
    assert isinstance(shape, Shape)
    (tmp_path / f"x{suffix}").write_bytes(b"nothing")
    with pytest.raises(RMDError, match=r"is not a clip, or is damaged: remove it$"):
        common_shape([tmp_path / f"x{suffix}"], CLIPS)
