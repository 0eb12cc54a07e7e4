"""The builds on a few scenes and iterations: files, records, resumption and refusals."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from research.scenes import build
from research.scenes.build import (
    build_judge,
    build_references,
    build_teacher,
    build_vae_weights,
    curriculum_of,
    load_imitated,
    load_vae,
    refine_teacher,
)
from research.scenes.judge import save_judge
from research.scenes.kits import SCENES, VISTAS
from research.scenes.record import Data, Part, Record, read_record, record, seeded
from research.scenes.teacher import Curriculum
from research.scenes.vae import VaeSettings
from rmd.common.errors import RMDError
from rmd.common.files import new_folder
from rmd.core.metrics import high_frequency
from rmd.models import Backbone
from rmd.train.identity import weights_key
from rmd.worlds.judge import load_judge
from rmd.worlds.references import load_references
from rmd.worlds.still.grammar import parse, scene_captions

FEW = Data(64, seed=1)
TINY = replace(
    SCENES, vae=VaeSettings(iterations=2), vae_data=FEW, clean=FEW, poor=FEW, judge_data=(Data(64, 21, False),),
    judge_iterations=2, judge_test=(Data(16, 22, False),), references=Data(8, 31, False),
)  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a folder with all parts, as small as possible, and the log messages."""
    root, lines = tmp_path_factory.mktemp("built"), list[str]()
    cache = root / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "curriculum_of", lambda iterations, seed, usual: small(seed))
        build_teacher(root / "out", cache=cache, kit=TINY, log=lines.append)
    build_judge(root / "out", cache=cache, kit=TINY, log=lines.append)
    build_references(root / "out", cache=cache, kit=TINY, steps=2, log=lines.append)
    return root, lines


def small(seed: int) -> Curriculum:
    return Curriculum(low_iterations=1, high_iterations=1, low_batch=4, high_batch=4, seed=seed)


def test_all_parts_are_written_and_nothing_else(built: tuple[Path, list[str]]) -> None:
    out = built[0] / "out"
    assert names(out) == ["build.json", "judge.safetensors", "references.safetensors", "teacher"]
    left = [name.partition("-")[0] for name in names(built[0] / "cache")]
    assert {*left} == {"scenes", "vae", "latents"} and left.count("vae") == 1  # checkpoints are removed


def test_pictures_are_encoded_once(
    built: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "curriculum_of", lambda iterations, seed, usual: replace(small(seed), lr=1e-4))
    monkeypatch.setattr(build, "kit_latents", None)
    lines = list[str]()
    build_teacher(tmp_path / "out", cache=built[0] / "cache", kit=TINY, log=lines.append)
    assert lines and not any(line.startswith("encoding") for line in lines)


def test_the_record_of_a_build(built: tuple[Path, list[str]]) -> None:
    parts = json.loads((built[0] / "out" / "build.json").read_text(encoding="utf-8"))
    assert sorted(parts) == ["decoder", "judge", "references", "teacher", "vae"]
    data = {"count": 64, "seed": 1, "training": True, "world": "scenes", "side": 64, "poor": False}
    assert parts["vae"]["data"] == [data] and parts["teacher"]["data"] == [data, data]
    assert [parts[name]["iterations"] for name in ("vae", "decoder", "teacher", "judge")] == [2, 5, 2, 2]
    for part in parts.values():
        assert part["seconds"] > 0
        assert part["torch_version"] == torch.__version__ and part["threads"] == torch.get_num_threads()
    assert 0 <= parts["judge"]["results"]["all_right"] <= 1
    assert parts["references"]["results"]["steps"] == 2
    assert parts["references"]["results"]["guidance"] == build.load_recipe("scenes").method.guidance


def test_a_world_of_another_size_is_built_by_its_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, poor = (Data(8, i, world="vistas", side=128, poor=i == 2) for i in (1, 2))
    many = replace(few, count=32)
    kit = replace(
        VISTAS, vae=replace(VISTAS.vae, iterations=1, batch_size=4), vae_data=few, clean=few, poor=poor,
        judge_data=(many, replace(poor, count=32)), judge_iterations=2, judge_test=(few,), references=few,
    )  # fmt: skip
    monkeypatch.setattr(build, "curriculum_of", lambda iterations, seed, usual: small(seed))
    out, cache = tmp_path / "out", tmp_path / "cache"
    quiet: dict[str, Any] = {"cache": cache, "kit": kit, "log": lambda _: None}
    folder = build_teacher(out, **quiet)
    build_judge(out, **quiet)
    statistics = build_references(out, **quiet, steps=2)
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert pipe.vae.config.sample_size == 128 and pipe.unet.config.sample_size == 32
    assert len(pipe.tokenizer_2("a big red striped balloon on the left, over mountains at dawn")["input_ids"]) == 15
    assert statistics["renders"].shape == statistics["teacher"].shape == (8, 96 + 2 * (24 + 40 + 48))
    parts = read_record(out)
    assert parts.teacher is not None and parts.teacher.data == (few, poor)
    assert parts.judge is not None and parts.judge.results.keys() >= {"all_right", "kind_a", "form"}
    assert parts.refinement is None
    check_refinement(tmp_path / "refined", folder, quiet | {"kit": replace(kit, refinement=kit.curriculum)})


def check_refinement(out: Path, teacher: Path, options: dict[str, Any]) -> None:
    """Train a teacher further, and check that it began with the given one and left its VAE alone."""
    before, after = (load_imitated(each) for each in (teacher, refine_teacher(out, teacher=teacher, **options)))
    made = read_record(out).refinement
    assert made is not None and made.iterations == 2 and made.refined == weights_key(before.denoiser)
    assert made.refined != weights_key(after.denoiser)
    moved = [
        float((new.float() - old.float()).abs().max())
        for old, new in zip(before.denoiser.parameters(), after.denoiser.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1
    assert weights_key(before.pipe.vae) == weights_key(after.pipe.vae)
    assert not [path for path in out.rglob("*.json") if str(teacher) in path.read_text(encoding="utf-8")]


def test_a_teacher_without_a_refinement_is_not_refined(built: tuple[Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(RMDError, match="the teacher of scenes has no further training: leave the command out"):
        refine_teacher(tmp_path / "out", teacher=built[0] / "out" / "teacher", cache=tmp_path, kit=TINY)
    assert not (tmp_path / "out").exists()


def test_log_messages_end_with_the_seconds(built: tuple[Path, list[str]]) -> None:
    kinds = {line.split()[0] for line in built[1]}
    assert kinds == {"vae", "decoder", "encoding", "teacher", "judge"}
    timed = [line for line in built[1] if not line.startswith("encoding ")]
    assert all(line.endswith("s") and line.rsplit(" ", 1)[1][:-1].isdigit() for line in timed)


def test_the_teacher_is_a_small_ordinary_pipeline(built: tuple[Path, list[str]]) -> None:
    folder = built[0] / "out" / "teacher"
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float16)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder_2):
        assert {value.dtype for value in module.state_dict().values() if value.is_floating_point()} == {torch.float16}
    parameters = sum(p.numel() for module in (pipe.unet, pipe.vae, pipe.text_encoder_2) for p in module.parameters())
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 2.05 * parameters


def test_configurations_do_not_contain_local_folders(built: tuple[Path, list[str]]) -> None:
    """The VAE was loaded from the cache, a folder that diffusers would record."""
    configurations = list((built[0] / "out" / "teacher").rglob("*.json"))
    assert any(path.parent.name == "vae" for path in configurations)
    assert not [path for path in configurations if str(built[0]) in path.read_text(encoding="utf-8")]


def test_references_are_features_of_the_judge(built: tuple[Path, list[str]]) -> None:
    out = built[0] / "out"
    result = load_references(out)
    scenes = Data(8, 31, False).render(None)
    pixels = scenes.pixels(torch.arange(8))
    features = load_judge(out, SCENES.world.untrained_judge()).assess(pixels, scenes.attributes).features
    assert torch.allclose(result["renders"], features, atol=0.02)
    assert result["teacher"].shape == features.shape and not torch.allclose(result["teacher"], features, atol=0.1)
    assert result.high_frequency == pytest.approx(high_frequency(pixels), rel=1e-6)
    captions = scene_captions(8, seed=31, training=False)
    expected = [list(known.to_tuple()) for text in captions if (known := parse(text)) is not None]
    assert build._attributes(SCENES, captions).tolist() == expected and len(expected) == 8


def test_a_vae_is_trained_once_per_cache(built: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_vae_weights", None)
    (folder,) = (path for path in (built[0] / "cache").iterdir() if path.name.startswith("vae-"))
    vae = build._cached_vae(built[0] / "out", built[0] / "cache", TINY, print)
    assert vae.dtype == torch.float32 and not any(p.requires_grad for p in vae.parameters())
    shipped = load_vae(built[0] / "out" / "teacher" / "vae")
    for name, value in load_vae(folder / "vae").state_dict().items():
        assert torch.equal(value, shipped.state_dict()[name])  # the teacher contains the VAE it was trained with


def test_a_teachers_checkpoint_depends_on_the_encoder_not_on_the_decoder(
    built: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []

    def train(*_: Any, checkpoint: Path, **__: Any) -> float:
        kept.append(checkpoint)
        return 1.0

    monkeypatch.setattr(build, "train_teacher", train)
    vae = load_vae(built[0] / "out" / "teacher" / "vae")
    for part in (None, vae.decoder.conv_out, vae.encoder.conv_out):
        if part is not None:
            part.bias += 1
        vae.save_pretrained(tmp_path / "vae")
        build_teacher(tmp_path / "out", cache=tmp_path, vae=tmp_path / "vae", kit=TINY)
    assert kept[0] == kept[1] != kept[2]


def test_a_teacher_that_imitates_another_shares_its_vae(
    built: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = built[0] / "out" / "teacher"
    given: list[tuple[Backbone | None, Path]] = []

    def train(*_: Any, imitated: Backbone | None, checkpoint: Path, **__: Any) -> float:
        given.append((imitated, checkpoint))
        return 1.0

    def build_one(**options: Any) -> Path:
        return build_teacher(tmp_path / "out", cache=tmp_path, family="pixart", kit=TINY, **options)

    monkeypatch.setattr(build, "train_teacher", train)
    monkeypatch.setattr(build, "teacher_folder", lambda: whole)
    folder = build_one()  # imitates the packaged one by default
    build_one(imitate=whole)
    imitated = read_record(tmp_path / "out").teacher.imitated
    assert imitated == weights_key(load_imitated(whole).denoiser)
    build_one(vae=whole / "vae")
    assert read_record(tmp_path / "out").teacher.imitated is None
    (first, kept), (second, same), (none, other) = given
    assert kept == same != other and none is None
    for one in (first, second):
        assert one is not None and one.family == "sdxl"
        assert not any(p.requires_grad for part in one.text_encoders for p in part.parameters())
    shipped = load_vae(folder / "vae")
    for name, value in load_vae(whole / "vae").state_dict().items():
        assert torch.equal(value, shipped.state_dict()[name])
    with pytest.raises(RMDError, match="give --vae or --imitate, not both"):
        build_one(imitate=whole, vae=whole / "vae")
    with pytest.raises(RMDError, match="there is no teacher"):
        build_one(imitate=tmp_path / "none")


def test_an_interrupted_build_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []

    def train(vae: Any, scenes: Any, settings: Any, *, checkpoint: Path, **_: Any) -> float:
        started.append(checkpoint)
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
        if len(started) == 1:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(build, "train_vae", train)
    monkeypatch.setattr(build, "train_decoder", lambda *_, **__: 1.0)
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        build_vae_weights(tmp_path / "out", cache=cache, kit=TINY)
    assert names(tmp_path / "out") == [] and started[0].exists()
    build_vae_weights(tmp_path / "out", cache=cache, kit=TINY)
    assert started[1] == started[0] and not started[0].exists()
    assert names(tmp_path / "out") == ["build.json", "vae"]
    # Another seed, or another number of iterations or scenes, is another training.
    changes: tuple[dict[str, Any], ...] = (
        {"seed": 1}, {"iterations": 7}, {"kit": replace(TINY, vae_data=Data(3, seed=0))},
    )  # fmt: skip
    for change in changes:
        build_vae_weights(tmp_path / "out", **({"cache": cache, "kit": TINY} | change))
    assert len(set(started)) == 4


def test_initial_weights_depend_on_the_seed_only() -> None:
    state = torch.get_rng_state()
    result = []
    for seed in (0, 0, 1):
        with seeded(seed):
            result.append(SCENES.world.untrained_judge().state_dict()["embed.1.weight"])
    assert torch.equal(result[0], result[1]) and not torch.equal(result[0], result[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shorter_curriculum_keeps_the_proportions() -> None:
    usual = Curriculum()
    assert curriculum_of(None, seed=3, usual=usual) == Curriculum(seed=3)
    half = curriculum_of(usual.iterations // 2, seed=0, usual=usual)
    assert (half.low_iterations, half.high_iterations) == (usual.low_iterations // 2, usual.high_iterations // 2)
    shortest = curriculum_of(2, seed=0, usual=usual)
    assert (shortest.low_iterations, shortest.high_iterations) == (1, 1)
    refined = curriculum_of(4, seed=0, usual=replace(usual, low_iterations=0))
    assert (refined.low_iterations, refined.high_iterations) == (0, 4)


def test_errors_leave_no_files(tmp_path: Path, built: tuple[Path, list[str]]) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    usual: dict[str, Any] = {"cache": cache}
    with pytest.raises(RMDError, match=r"unknown family 'sdxk' \(did you mean 'sdxl'\?\)"):
        build_teacher(out, family="sdxk", **usual)
    with pytest.raises(RMDError, match="holds no VAE: give the folder that"):
        build_teacher(out, vae=tmp_path / "none", **usual)
    with pytest.raises(RMDError, match="no judge in"):
        build_references(out, **usual)
    with pytest.raises(RMDError, match=r"there is no teacher .*/out/teacher: build one"):
        build_references(out, judge=built[0] / "out", **usual)
    with pytest.raises(RMDError, match="is not a diffusers pipeline"):
        build_references(out, judge=built[0] / "out", teacher=tmp_path, **usual)
    assert names(tmp_path) == []


def test_unwritable_folders_are_refused_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "train_judge", None)
    (tmp_path / "file").touch()
    with pytest.raises(RMDError, match=r"cannot write to .*file: .*; put that right and run the command again"):
        build_judge(tmp_path / "file", cache=tmp_path)
    (tmp_path / "build.json").write_text("[", encoding="utf-8")
    with pytest.raises(RMDError, match=r"build.json is not valid JSON: .*; remove the file"):
        build_judge(tmp_path, cache=tmp_path)


def test_a_full_disk_is_an_error_of_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save_judge(SCENES.world.untrained_judge(), tmp_path / "judge.safetensors")
    before = (tmp_path / "judge.safetensors").read_bytes()
    monkeypatch.setattr(build, "train_judge", lambda *_, **__: 0.0)
    monkeypatch.setattr("research.scenes.judge.save_file", full)
    with pytest.raises(RMDError, match="the disk is full"):
        build_judge(tmp_path, cache=tmp_path / "cache", kit=TINY)
    assert (tmp_path / "judge.safetensors").read_bytes() == before


def test_a_new_folder_is_written_atomically(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    with new_folder(folder) as partial:
        partial.mkdir()
        (partial / "a").touch()
    with pytest.raises(ZeroDivisionError), new_folder(folder) as partial:
        partial.mkdir()
        raise ZeroDivisionError
    assert names(tmp_path) == ["it"] and names(folder) == ["a"]


def test_records_accumulate(tmp_path: Path) -> None:
    data = (Data(2, 0), Data(3, 1, training=False))
    first, other, last = (Part(seed, 10, data, 0.5, {"right": 0.25, "steps": 2}) for seed in range(3))
    record(tmp_path, "vae", first)
    record(tmp_path, "judge", other)
    record(tmp_path, "vae", last)
    assert read_record(tmp_path) == Record(vae=last, judge=other)
    assert names(tmp_path) == ["build.json"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "should be"),
        ('{"vea": {}}', r"there is no key vea \(did you mean 'vae'\?\)"),
        ('{"vae": {"seed": 0}}', r"vae\.iterations is missing"),
        ('{"vae": {"seed": 0, "iterations": 1, "data": [], "seconds": NaN}}', "is not valid JSON"),
        ('{"vae": {"seed": 0, "iterations": 1, "data": [], "seconds": "1"}}', r"vae\.seconds should be a number"),
        ('{"vae": {"seed": 0, "iterations": 1, "data": [], "seconds": 1, "more": 1}}', r"vae\.more"),
    ],
)
def test_a_record_is_read_strictly(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "build.json").write_text(content)
    with pytest.raises(RMDError, match=f"build.json.*{sentence}.*; remove the file and run the command again$"):
        read_record(tmp_path)
