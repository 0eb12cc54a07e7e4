"""The builds of moving scenes on a few clips and iterations: files, records and measurements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from research.scenes.moving import build
from research.scenes.moving.build import (
    build_clip_references,
    build_clip_teacher,
    build_clip_vae_weights,
    build_frame_judge,
    load_clip_vae,
)
from research.scenes.moving.dataset import make_clips
from research.scenes.moving.teacher import build_wan, clip_latents
from research.scenes.moving.vae import CLIP_CHANNELS, build_clip_vae, encode_clips
from research.scenes.record import Data, read_record
from research.scenes.teacher import HIGH, LOW, Curriculum, LatentSets
from rmd.common.errors import RMDError
from rmd.models import load_backbone
from rmd.worlds.moving.judge import FEATURES, load_frame_judge
from rmd.worlds.moving.metrics import change_features, flicker, frame_features, measure_clips
from rmd.worlds.moving.path import FRAMES
from rmd.worlds.references import load_references

pytestmark = pytest.mark.usefixtures("quick_muon")

FEW = Data(16, seed=1)
SHORT = Curriculum(
    low_iterations=2, high_iterations=4, low_batch=2, high_batch=2, still_batch=2, still_share=0.4, warmup=2
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a folder with all parts, as small as possible, and the log messages."""
    root, lines = tmp_path_factory.mktemp("moving"), list[str]()
    out, cache = root / "out", root / "cache"
    vae = build_clip_vae_weights(out, cache=cache, iterations=2, data=FEW, log=lines.append)
    build_clip_teacher(out, cache=cache, vae=vae, curriculum=SHORT, clean=FEW, poor=FEW, still=FEW, log=lines.append)
    judged = Data(64, seed=21, training=False)
    build_frame_judge(out, cache=cache, iterations=2, data=judged, test=Data(8, 22, False), log=lines.append)
    build_clip_references(out, cache=cache, data=Data(4, 31, False), steps=2, log=lines.append)
    return root, lines


@pytest.fixture(scope="module")
def encoded(built: tuple[Path, list[str]]) -> LatentSets:
    return clip_latents(load_clip_vae(built[0] / "out" / "vae"), FEW, Data(12, seed=2), FEW, seed=0)


def test_all_parts_are_written_and_recorded(built: tuple[Path, list[str]]) -> None:
    out = built[0] / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "build.json", "clip-references.safetensors", "frame-judge.safetensors", "teacher", "vae",
    ]  # fmt: skip
    made = read_record(out)
    assert made.vae and made.teacher and made.judge and made.references and not made.decoder
    assert {"renders_motion", "teacher_motion", "steps"} <= set(made.references.results)
    assert len(made.teacher.data) == 3
    assert [path.name.rpartition("-")[0] for path in (built[0] / "cache").iterdir()] == ["clip-latents"]
    assert {line.split()[0] for line in built[1]} == {"vae", "vae-moving", "encoding", "teacher", "judge"}


def test_the_teacher_is_an_ordinary_pipeline_in_half_precision(built: tuple[Path, list[str]]) -> None:
    folder = built[0] / "out" / "teacher"
    pipe = WanPipeline.from_pretrained(folder)
    video = pipe(
        "a red star spins fast, on sand", height=64, width=64, num_frames=FRAMES, num_inference_steps=2,
        max_sequence_length=20, output_type="pt",
    ).frames  # fmt: skip
    assert video.shape == (1, FRAMES, 3, 64, 64)
    backbone = load_backbone(folder)
    assert backbone.family == "wan" and backbone.size_multiple == 16
    assert backbone.latent_shape(1, HIGH.height, HIGH.width, FRAMES) == (1, CLIP_CHANNELS, 5, 16, 16)
    assert backbone.encode(["a red star spins fast, on sand"]).tensors["embeds"].shape[1] == 20


def test_latents_of_both_resolutions_have_unit_statistics_and_their_captions(
    built: tuple[Path, list[str]], encoded: LatentSets
) -> None:
    result = encoded
    high, low = result.high.values, result.low.values
    assert result.high.labels is not None and result.high.labels.shape == (16, 5 * 8 * 8, 40)
    assert result.low.labels is not None and result.low.labels.shape == (12, 5 * 4 * 4, 40)
    assert high.shape == (16, CLIP_CHANNELS, 5, 16, 16) and low.shape == (12, CLIP_CHANNELS, 5, 8, 8)
    assert high.dtype == torch.float16
    assert result.high.captions == make_clips(16, seed=1, training=True).captions
    deviation = high.float().transpose(0, 1).flatten(1).std(1)
    assert float(deviation.min()) > 0.8 and float(deviation.max()) < 1.2
    assert float(high.float().mean().abs()) < 0.1
    vae = load_clip_vae(built[0] / "out" / "vae")
    again = clip_latents(vae, Data(1, seed=1), Data(12, seed=2), seed=0)
    assert again.still is None and torch.equal(again.low.values, low) and again.low.captions == result.low.captions


def test_first_frames_are_those_of_their_clips(encoded: LatentSets) -> None:
    result = encoded
    assert result.still is not None and result.still.captions == result.high.captions
    assert result.still.values.shape == (16, CLIP_CHANNELS, 1, 16, 16)
    assert torch.allclose(result.still.values[:, :, 0].float(), result.high.values[:, :, 0].float(), atol=5e-3)
    assert result.still.labels is not None and result.high.labels is not None
    assert torch.equal(result.still.labels, result.high.labels[:, : 8 * 8])


def test_a_second_build_reads_encoded_clips_from_the_cache(
    built: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "clip_latents", None)
    root, lines = built[0], list[str]()
    curriculum = Curriculum(low_iterations=1, high_iterations=1, low_batch=4, high_batch=4)
    build_clip_teacher(
        tmp_path, cache=root / "cache", vae=root / "out" / "vae", curriculum=curriculum, clean=FEW, poor=FEW,
        still=FEW, log=lines.append,
    )  # fmt: skip
    assert not any(line.startswith("encoding") for line in lines)


def test_the_vae_encodes_the_first_frame_alone_and_downsamples_by_four() -> None:
    vae = build_clip_vae().eval()
    assert encode_clips(vae, torch.zeros(1, 3, FRAMES, 64, 64)).shape == (1, CLIP_CHANNELS, 5, 16, 16)
    assert encode_clips(vae, torch.zeros(2, 3, FRAMES, 32, 32)).shape == (2, CLIP_CHANNELS, 5, 8, 8)
    videos = torch.rand(1, 3, FRAMES, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    later = videos.clone()
    later[:, :, 5:] = 0
    difference = (encode_clips(vae, videos) - encode_clips(vae, later)).abs().amax((0, 1, 3, 4))
    assert float(difference[:2].max()) < 1e-5 < float(difference[3:].min())  # causal in time


def test_the_untrained_teacher_is_small() -> None:
    with torch.random.fork_rng(devices=[]):
        backbone = build_wan(build_clip_vae().eval())
    count = sum(p.numel() for p in backbone.denoiser.parameters())
    assert 1e6 < count < 3e6
    assert all(side % backbone.size_multiple == 0 for side in (LOW.height, HIGH.height))


def test_a_loaded_judge_is_the_same_and_measures_clips(built: tuple[Path, list[str]]) -> None:
    judge = load_frame_judge(built[0] / "out")
    clips = make_clips(8, seed=9, training=False)
    videos = clips.pixels(torch.arange(8))
    track = judge.follow(videos, chunk=3)
    assert track.named.shape == (8, FRAMES, 3) and track.features.shape == (8, FRAMES, FEATURES)
    assert torch.allclose(track.features, judge.follow(videos).features, atol=1e-5)
    result = measure_clips(videos, track, clips.attributes)["attributes"]
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert set(result.parts) == {"background", "shape", "colour"}
    assert frame_features(track).shape == (24, FEATURES) and change_features(track).shape == (8, FEATURES)
    loaded = load_references(built[0] / "out", moving=True)
    assert loaded["render_frames"].shape == (12, FEATURES) and loaded["teacher_changes"].shape == (4, FEATURES)
    assert loaded.high_frequency > 0


def test_flicker_is_the_change_of_the_background(built: tuple[Path, list[str]]) -> None:
    clips = make_clips(6, seed=9, training=False)
    videos = clips.pixels(torch.arange(6))
    path = clips.path
    track = load_frame_judge(built[0] / "out").follow(videos)
    true = type(track)(track.named, path.centre, path.radius, track.phase, track.features)
    assert flicker(videos, true) < 0.05
    noisy = videos + 0.1 * (torch.arange(FRAMES) % 2).view(1, 1, -1, 1, 1)  # half of 0.1 of the range of 2: 5 %
    assert flicker(noisy, true) == pytest.approx(5, abs=0.2)


def test_missing_parts_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(
        RMDError,
        match=r"holds no VAE: give the folder that `.* train-vae --world moving-scenes` wrote$",
    ):
        load_clip_vae(tmp_path)
    with pytest.raises(RMDError, match=r"^no judge of moving scenes in "):
        load_frame_judge(tmp_path)
    with pytest.raises(RMDError, match=r"^no reference statistics in .*--world moving-scenes`$"):
        load_references(tmp_path, moving=True)
