"""The engine on real pipelines: several students on one base, sizes, and samples that do not depend on their batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import make_student
from safetensors import safe_open
from safetensors.torch import save_file
from serving import PROMPTS, packaged_student

from rmd.common.errors import RMDError
from rmd.core.randomness import seeded
from rmd.models.adapter import LORA_NAME
from rmd.sample.pipeline import RMDPipeline
from rmd.serve.batching import Shape
from rmd.serve.engine import AbandonedError, Engine, choose, load_engine, named, parse_size
from rmd.serve.files import encode

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged_student(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def engine(scenes: Path) -> Engine:
    return load_engine({"scenes": str(scenes)}, device=CPU, sizes=["64x48"])


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("lora"), "sdxl", "lora")


def pngs(engine: Engine, shape: Shape, samples: list[tuple[str, int]]) -> list[bytes]:
    """Return the PNG files of samples that are made in one batch."""
    prompts, seeds = zip(*samples, strict=True)
    return [encode(each, "png") for each in engine.sample(shape, prompts, seeds, lambda share: True)]


def test_a_picture_has_the_same_bytes_in_any_batch_of_one_size(engine: Engine) -> None:
    shape = engine.students["scenes"].shapes[0]
    wanted = (PROMPTS[0], 7)
    alone = pngs(engine, shape, [wanted] * 4)
    assert len(set(alone)) == 1
    for place in range(4):
        batch = [(PROMPTS[(place + other) % 4], 100 * place + other) for other in range(4)]
        batch[place] = wanted
        made = pngs(engine, shape, batch)
        assert made[place] == alone[0] and len(set(made)) == 4


def test_a_batch_of_another_size_changes_a_picture_by_rounding_only(engine: Engine) -> None:
    shape = engine.students["scenes"].shapes[0]
    together = engine.sample(shape, PROMPTS, range(4), lambda share: True)
    for seed, prompt in enumerate(PROMPTS):
        (alone,) = engine.sample(shape, [prompt], [seed], lambda share: True)
        difference = np.asarray(alone).astype(int) - np.asarray(together[seed]).astype(int)
        assert abs(difference).max() <= 1 and (difference != 0).mean() < 1e-3


def test_samples_are_those_of_the_pipeline(scenes: Path, engine: Engine) -> None:
    pipe = RMDPipeline.from_pretrained(scenes)
    pipe.set_progress_bar_config(disable=True)
    for shape in engine.students["scenes"].shapes:
        (expected,) = pipe(PROMPTS[1], generator=seeded(3), height=shape.height, width=shape.width).images
        assert pngs(engine, shape, [(PROMPTS[1], 3)]) == [encode(expected, "png")]
        assert expected.size == (shape.width, shape.height)


def test_a_batch_ends_after_the_step_when_nobody_waits_any_more(engine: Engine) -> None:
    shares: list[float] = []

    def after_step(share: float) -> bool:
        shares.append(share)
        return len(shares) < 2

    with pytest.raises(AbandonedError):
        engine.sample(engine.students["scenes"].shapes[0], PROMPTS, range(4), after_step)
    assert shares == [0.25, 0.5]


def test_students_share_their_base_and_draw_their_own_pictures(lora: Path, tmp_path: Path) -> None:
    other = other_student(lora, tmp_path / "other")
    engine = load_engine({"one": str(lora), "two": str(other)}, device=CPU)
    for name, folder in (("one", lora), ("two", other), ("one", lora)):
        pipe = RMDPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        shape = engine.students[name].shapes[0]
        (expected,) = pipe(PROMPTS[0], generator=seeded(1)).images
        assert pngs(engine, shape, [(PROMPTS[0], 1)]) == [encode(expected, "png")]
    first, second = (pngs(engine, engine.students[name].shapes[0], [(PROMPTS[0], 1)]) for name in ("one", "two"))
    assert first != second


def other_student(student: Path, folder: Path) -> Path:
    """Copy a LoRA student with an adapter of twice the weights."""
    folder.mkdir()
    (folder / "rmd_config.json").write_bytes((student / "rmd_config.json").read_bytes())
    with safe_open(student / LORA_NAME, "pt") as file:
        names = file.keys()
        save_file({name: 2 * file.get_tensor(name) for name in names}, folder / LORA_NAME, metadata=file.metadata())
    return folder


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["runs/demo/student"], {"student": "runs/demo/student"}),
        (["me/sdxl-rmd", "b=x/y"], {"sdxl-rmd": "me/sdxl-rmd", "b": "x/y"}),
        (["a=x=y/z"], "'a=x=y/z': a student's name has letters"),
        (["x/student", "y/student"], "two students have the name student: give them other names by NAME=STUDENT"),
        (["a b=x"], "'a b=x': a student's name has letters, digits, _, - and .: give one by NAME=STUDENT"),
    ],
)
def test_names(sources: list[str], expected: dict[str, str] | str) -> None:
    if isinstance(expected, dict):
        assert named(sources) == expected
    else:
        with pytest.raises(RMDError) as caught:
            named(sources)
        assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("text", ["64", "64x", "64X64", "0x64", "-1x5", "64x64x3", "999999x1", "64x64\n", "６４x64"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(RMDError, match=r"is not a size: write it as WIDTHxHEIGHT, such as 1024x1024"):
        parse_size(text)
    assert parse_size("640x48") == (48, 640)


def test_what_cannot_be_served(scenes: Path, lora: Path, tmp_path: Path) -> None:
    elsewhere = make_student(tmp_path, "sdxl", "lora")
    for sources, options, sentence in (
        ({"a": scenes, "b": scenes}, {}, "a is a full student, which cannot share a server with others"),
        ({"a": lora, "b": elsewhere}, {}, f"a is a student of {lora.parent / 'teacher'} and b of"),
        ({"a": scenes}, {"sizes": ["65x64"]}, "a: "),
        ({"a": scenes}, {"frames": 5}, "a: sdxl makes single pictures, not 5 frames"),
        ({"a": tmp_path}, {}, f"{tmp_path} holds no student: it has no rmd_config.json"),
    ):
        with pytest.raises(RMDError) as caught:
            load_engine({name: str(source) for name, source in sources.items()}, device=CPU, **options)
        assert str(caught.value).startswith(sentence)


def test_a_request_gets_a_model_that_makes_what_it_asks_for(engine: Engine) -> None:
    students = engine.students
    assert choose(students, None, moving=False) is choose(students, "scenes", moving=False) is students["scenes"]
    with pytest.raises(RMDError, match=r"the model scenes makes no videos: use /v1/images/generations"):
        choose(students, "scenes", moving=True)
    with pytest.raises(RMDError, match=r"no model of this server makes videos"):
        choose(students, None, moving=True)
