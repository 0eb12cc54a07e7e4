"""Prompt sources, those of other packages among them, and the order of a seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from research.scenes.tokenizer import vocabulary
from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.common.plugins import Registry
from rmd.data import formats, prompts
from rmd.data.prompts import Prompts, load_prompts, read_prompts, read_source
from rmd.recipes.hashes import config_hash, run_hash
from rmd.recipes.schema import DataConfig, load_recipe, to_yaml
from rmd.worlds.still.grammar import has_held_out, parse, scene_captions

SCENES = DataConfig(prompts="scenes")


def take(source: Prompts, count: int, batch_size: int = 1) -> list[str]:
    """Return the first `count` prompts in the order of the seed."""
    return [text for i in range(-(-count // batch_size)) for text in source.batch(i, batch_size)[0]][:count]


@given(n=st.integers(1, 30), seed=st.integers(0, 99), epochs=st.integers(1, 3))
def test_every_epoch_shows_every_prompt_once(n: int, seed: int, epochs: int) -> None:
    texts = [f"prompt {i}" for i in range(n)]
    order = take(Prompts(texts, seed), n * epochs)
    for epoch in range(epochs):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == sorted(texts)


@given(n=st.integers(1, 20), batch_size=st.integers(1, 50), seed=st.integers(0, 99))
def test_the_order_does_not_depend_on_the_batch_size(n: int, batch_size: int, seed: int) -> None:
    numbered = Prompts([str(i) for i in range(n)], seed)
    assert take(numbered, 60, batch_size) == take(numbered, 60)


def test_a_batch_is_a_function_of_seed_and_position() -> None:
    texts = [str(i) for i in range(50)]
    later = Prompts(texts, 3).batch(7, 4)
    assert Prompts(texts, 3).batch(7, 4) == later
    assert Prompts(texts, 4).batch(7, 4)[0] != later[0]
    assert take(Prompts(texts, 3), 50) != take(Prompts(texts, 3), 100)[50:]  # another order each epoch


def test_samples_are_numbered_through_the_run() -> None:
    letters = Prompts(["a", "b", "c"], 0)
    assert [letters.batch(i, 2)[1] for i in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_lines_are_stripped_and_kept_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffzwei Bälle \r\n\n  ein Ball\nzwei Bälle\n\t\n".encode())
    assert read_prompts(str(path)) == ["zwei Bälle", "ein Ball"]
    assert load_prompts(DataConfig(prompts=str(path)), seed=4) == Prompts(["zwei Bälle", "ein Ball"], 4)


def test_scenes_are_a_prompt_source_of_the_grammars_words() -> None:
    drawn = load_prompts(SCENES, seed=1)
    assert drawn.texts == load_prompts(SCENES, seed=1).texts
    assert drawn.texts != load_prompts(SCENES, seed=2).texts
    words = {word for text in drawn.texts[:200] for word in text.replace(",", "").split()}
    assert words <= {*vocabulary(), ""}


def test_training_captions_leave_out_the_held_out_combinations() -> None:
    def held_out(training: bool) -> int:
        scenes = [parse(text) for text in scene_captions(300, seed=0, training=training)]
        return sum(has_held_out(scene) for scene in scenes if scene is not None)

    assert held_out(training=True) == 0
    assert held_out(training=False) > 0


def test_captions_of_a_shorter_list_begin_the_longer_one() -> None:
    assert scene_captions(20, seed=5, training=True)[:8] == scene_captions(8, seed=5, training=True)


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "prompts.txt"
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "blank":
            path.write_bytes(b" \n\t\n\n")
        case "latin":
            path.write_bytes("ein Bär\n".encode("latin-1"))
        case "directory":
            path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "there is no prompt file {path}: give a text file with one prompt per line"),
        ("empty", "{path} gives no prompts (it is empty): check its content and the filters of data"),
        ("blank", "{path} gives no prompts (3 empty): check its content and the filters of data"),
        ("latin", "{path} is not UTF-8 (byte 5): save it as UTF-8 text"),
        ("directory", "{path} is a folder: give a file in it, or a pattern such as {path}/*.txt"),
    ],
)
def test_a_bad_file_is_reported_in_a_sentence(kind: str, sentence: str, tmp_path: Path) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(RMDError) as caught:
        load_prompts(DataConfig(prompts=str(path)), seed=0)
    assert str(caught.value) == sentence.format(path=path)


PLUGIN = """
from rmd.common.typed import Strict
from rmd.data.prompts import PromptSource


class Balls(PromptSource):
    class Options(Strict):
        colour: str = "red"
        numbers: bool = False

    options: Options

    def captions(self):
        for number in range(int(self.argument or 2)):
            yield number if self.options.numbers else f"{number} {self.options.colour} balls, seed {self.seed}"


def read_parts(path, column, keys):
    for number, part in enumerate(path.read_text().split(";"), start=1):
        yield f"{path}, part {number}", part
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package is installed: one file with a prompt source and a format, and its entry points."""
    about = tmp_path / "packages" / "balls-1.0.dist-info"
    about.mkdir(parents=True)
    (about.parent / "balls_for_rmd.py").write_text(PLUGIN, encoding="utf-8")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: balls\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(
        "[rmd.prompts]\nballs = balls_for_rmd:Balls\nwrong = balls_for_rmd:read_parts\n"
        "[rmd.formats]\nparts = balls_for_rmd:read_parts\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(about.parent))
    monkeypatch.chdir(tmp_path)
    # The registries that exist have already looked for packages.
    for module, name in ((prompts, "PROMPTS"), (formats, "FORMATS")):
        known = getattr(module, name)
        monkeypatch.setattr(module, name, Registry(known.group, known.kind, known._own))


@pytest.mark.usefixtures("package")
def test_a_source_of_another_package_is_one_file() -> None:
    loaded = load_prompts(DataConfig(prompts="balls"), seed=7)
    assert loaded == Prompts(["0 red balls, seed 7", "1 red balls, seed 7"], 7)
    data = DataConfig(prompts="balls:11", options={"colour": "blue"}, min_chars=21, exclude=("balls:2",))
    reading = read_source(data)
    assert reading.texts == ["10 blue balls, seed 0"] and reading.left_out == {"too short": 10}
    assert read_prompts("balls:1") == ["0 red balls, seed 0"]


@pytest.mark.usefixtures("package")
def test_what_a_source_of_another_package_yields_is_checked_like_a_file() -> None:
    data = DataConfig(prompts="balls:3", options={"numbers": True})
    with pytest.raises(RMDError, match=r"^balls:3, caption 1: the caption is a number \(0\), not text; correct it, or"):
        read_source(data)
    with pytest.raises(RMDError, match=r"gives no prompts \(3 not text \(number\)\)"):
        read_source(data.model_copy(update={"skip_invalid": True}))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("balls", {"color": "red"}, r"^data\.options of 'balls': there is no key color \(did you mean 'colour'\?\)$"),
        ("balls", {"colour": 3}, r"^data\.options of 'balls': colour should be text, but is 3$"),
        ("hf:owner/name", {"colour": "red"}, r"^data\.options of 'hf:owner/name': there is no key colour$"),
        ("scenes", {"colour": "red"}, r"^data\.options have no effect on the prompts of scenes: leave them out$"),
        ("p.txt", {"colour": "red"}, r"^data\.options of 'p\.txt': there is no key colour$"),
        (
            "bals:3",
            {},
            r"^'bals:3' is neither a file nor a prompt source that is installed \(did you",
        ),
        ("wrong", {}, r"^the prompt source 'wrong' is not a subclass of PromptSource: update its package$"),
    ],
)
def test_a_wrong_source_or_option_is_named(name: str, options: dict[str, str | int], sentence: str) -> None:
    with pytest.raises(RMDError, match=sentence):
        load_prompts(DataConfig(prompts=name, options=dict(options)), seed=0)


@pytest.mark.usefixtures("package")
def test_a_file_with_the_name_of_a_source_is_not_read_by_chance() -> None:
    Path("balls").write_text("a cat", encoding="utf-8")
    with pytest.raises(RMDError, match=r"^balls is a prompt source and also a file: write \./balls for the file$"):
        load_prompts(DataConfig(prompts="balls"), seed=0)
    assert load_prompts(DataConfig(prompts="./balls"), seed=0).texts == ["a cat"]
    Path("a:b.txt").write_text("a dog", encoding="utf-8")
    assert read_prompts("a:b.txt") == ["a dog"]


@pytest.mark.usefixtures("package")
def test_a_format_of_another_package_is_one_function() -> None:
    Path("x.parts").write_text("a cat;a dog", encoding="utf-8")
    assert load_prompts(DataConfig(prompts="x.parts"), seed=0).texts == ["a cat", "a dog"]
    Path("x.part").write_text("a cat", encoding="utf-8")
    with pytest.raises(RMDError, match=r"has no known format: give a file that ends in \.txt, .*\.tar, \.parts$"):
        load_prompts(DataConfig(prompts="x.part"), seed=0)


def test_options_of_a_source_are_part_of_a_recipe() -> None:
    first, other = (load_recipe("scenes", ["data.prompts=balls:3", f"data.options={{n: {n}}}"]) for n in (1, 2))
    assert first.data.options == {"n": 1} and yaml.safe_load(to_yaml(first))["data"]["options"] == {"n": 1}
    assert config_hash(first) != config_hash(other)
    assert run_hash(first) == run_hash(other)  # the prompts themselves identify a run
    with pytest.raises(RMDError, match="should be a finite number"):
        load_recipe("scenes", ["data.options={n: .nan}"])


@pytest.mark.usefixtures("package")
def test_the_command_takes_prompts_from_another_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompts", "bals:3", "--model", "none"]) == 1
    assert "neither a file nor a prompt source" in capsys.readouterr().err
