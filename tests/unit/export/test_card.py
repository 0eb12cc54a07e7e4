"""Model cards: every name in them is shown as text, and their code runs, for every family and format."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from comparisons import row_of
from families import FRAMES, TINY, make_student
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from rmd.core.plan import StepPlan
from rmd.evaluation.rows import Report
from rmd.export.card import HERE, TEACHER_HERE, literal, model_card
from rmd.export.formats import export_student
from rmd.models.registry import family_class
from rmd.models.student import STANDALONE, StudentConfig, read_student
from rmd.report.tables import measures_beside

BASE = "someone/their-teacher"
HOSTILE = (
    'a/b"); import os ("',
    "</code><script>alert(1)</script>",
    "`rm` ``x`` ```\n\n# A heading\n\n---\nlicense: mit\n---\n",
    "| a | b |\n| --- | --- |\n| c | d |",
    "[click](https://evil.example) ![x](https://evil.example/x.png) <https://evil.example> www.evil.example",
    "{{ 7 * 7 }}{% for x in () %}{# c #}",
    "a: b # c\n- d\n&x *x !!python/object:os.system",
    "\u202e\x00\x1b[31m \u2028 \r\n \\ $x$ ~~~",
    "1. one",
    "> quoted",
    "    code",
    "",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudentConfig:
    return read_student(make_student(tmp_path_factory.mktemp("card"), "sdxl", "lora"))


def named(config: StudentConfig, **values: str) -> Any:
    """Return the config with other texts in its file."""

    class Named:
        family, plan, guidance, runs_alone = config.family, config.plan, config.guidance, True

    Named.values = config.values | values  # type: ignore[attr-defined]
    return Named()


def front_and_text(card: str) -> tuple[dict[str, Any], str]:
    assert card.startswith("---\n")
    front, _, text = card.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(front), text


def codes_of(card: str) -> list[str]:
    """Return the code that runs the student by RMD, and the code that does without it, if there is any."""
    blocks = [token for token in MarkdownIt("gfm-like", {"linkify": False}).parse(card) if token.type == "fence"]
    assert 1 <= len(blocks) <= 2 and all(block.info == "python" for block in blocks)
    return [block.content for block in blocks]


def code_of(card: str) -> str:
    return codes_of(card)[0]


def shape(text: str, *, html: bool) -> list[tuple[str, str]]:
    """Return the structure of a text without its words: blocks, links, images, HTML, code and emphasis."""
    tags = []
    parser = MarkdownIt("gfm-like", {"html": html, "linkify": False}).enable(["strikethrough", "table"])
    for token in parser.parse(text):
        tags.append((token.type, token.tag))
        for child in token.children or ():
            if child.type not in ("text", "text_special"):
                tags.append((child.type, child.tag))
    return tags


def check_card(card: str, plain: str) -> None:
    """Check that a card with other names has the front matter, the structure and the code of the plain one."""
    front, text = front_and_text(card)
    plain_front, plain_text = front_and_text(plain)
    assert front == plain_front
    for html in (False, True):
        assert shape(text, html=html) == shape(plain_text, html=html)
    assert codes_of(card) == codes_of(plain)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("field", ["recipe", "prompts", "method"])
def test_a_name_is_text_wherever_it_stands(field: str, text: str, config: StudentConfig) -> None:
    def card(value: str) -> str:
        return model_card(named(config, **{field: value}), "diffusers-lora", teacher=BASE)

    check_card(card(text), card("name"))


@given(st.text())
def test_any_text_is_text(config: StudentConfig, text: str) -> None:
    def card(value: str) -> str:
        values = dict.fromkeys(("recipe", "prompts", "method"), value)
        return model_card(named(config, **values), "comfyui", teacher=BASE)

    check_card(card(text), card("name"))


def test_a_name_is_shown_as_it_is(config: StudentConfig) -> None:
    name = "a *b* [c](d) <e> & `f` | $g$ http://h www.i #j \\k _l_ ~~m~~ ``n"
    file = "a *b* [c](d) <e> & `f` | $g$ #j _l_ ~~m~~ ``n.txt"
    card = model_card(named(config, recipe=name, prompts=file), "fused", teacher=BASE)
    heading, about, *_ = [token for token in MarkdownIt().parse(front_and_text(card)[1]) if token.type == "inline"]
    assert "".join(child.content for child in heading.children or ()) == f"{name}: {BASE} in 4 steps"
    assert [child.content for child in about.children or () if child.type == "code_inline"] == [BASE, file]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_rows_of_a_report_beside_the_student_are_text(text: str, config: StudentConfig, tmp_path: Path) -> None:
    def card(label: str) -> str:
        row = row_of("rmd").model_copy(update={"label": label})
        report = Report(
            rows=[row, row.model_copy(update={"name": "teacher"})], checks=[], quick=False, seconds=1.0,
            peak_memory_gb=1.0, config={}, versions={}, plan=config.plan.to_dict(), prompts=[], history=[], n=2, seed=0,
            overhead=0.1,
        )  # fmt: skip
        (tmp_path / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
        (tmp_path / "student").mkdir(exist_ok=True)
        return model_card(config, "fused", teacher=BASE, measures=measures_beside(tmp_path / "student"))

    if text:
        check_card(card(text), card("name"))
    assert "## Measured" in card(text)


def test_a_report_of_an_earlier_version_is_left_out_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "report.json").write_text("{}")
    assert measures_beside(tmp_path / "student") == ""
    warning = capsys.readouterr().err
    assert warning.startswith(
        f"rmd: warning: the card has no table of measures: {tmp_path}/report.json: rows is missing"
    )
    assert warning.count("\n") == 1


def test_the_card_names_a_larger_side_of_the_matching(config: StudentConfig) -> None:
    last = config.plan.stages[-1]
    plan = replace(config.plan, match_side=(2 * last.height, 2 * last.width))
    larger = config.model_copy(update={"plan": plan})
    sentence = f"its samples were matched at {2 * last.height}x{2 * last.width}"
    assert sentence in model_card(larger, "fused", teacher=BASE)
    assert "matched at" not in model_card(config, "fused", teacher=BASE)


@pytest.mark.parametrize("to", ["diffusers-lora", "diffusers-full", "kohya", "comfyui", "fused"])
@pytest.mark.parametrize("teacher", [BASE, "scenes", None])
def test_the_front_matter_says_what_it_is(teacher: str | None, to: str, config: StudentConfig) -> None:
    front, text = front_and_text(model_card(config, to, teacher=teacher))
    adapter = to in ("diffusers-lora", "kohya", "comfyui")
    relation = {"base_model": BASE, "base_model_relation": "adapter" if adapter else "finetune"}
    assert front == {
        **(relation if teacher == BASE else {}),
        "library_name": "diffusers",
        "license": "apache-2.0" if teacher == "scenes" else "other",
        "pipeline_tag": "text-to-image",
        "tags": ["rmd", "distillation", "few-step", "sdxl", *(["lora"] if adapter else [])],
    }
    assert ("`--base-model OWNER/NAME`" in text) == (teacher is None)
    assert text.startswith("\n# tiny: ") and ("They run one resolution at a time" in text) == (
        to in ("kohya", "comfyui")
    )


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: openrail++\n---\n# A teacher", "openrail++"),
        ("---\nlicense: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0"),
        ('---\nlicense: "mit\\n# Hello"\n---\n', "other"),
        ("---\nlicense: [mit, other]\n---\n", "other"),
        ("---\nlicense: {a: b}\n---\n", "other"),
        ("---\nlicense: 2001-99-99\n---\n", "other"),
        ("---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: [*b, *b]\n---\n", "other"),
        ("---\nlicense: !!python/object/apply:os.system [id]\n---\n", "other"),
        ("---\n" + "[" * 5000 + "\n---\n", "other"),
        ("---\nlicense: mit", "other"),
        ("# A teacher", "other"),
        ("---\n- license\n---\n", "other"),
        (b"\xff\xfe---\nlicense: mit\n---\n", "mit"),
    ],
)
def test_the_licence_is_read_from_the_teachers_card(
    text: str | bytes, licence: str, config: StudentConfig, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_bytes(text.encode() if isinstance(text, str) else text)
    front, _ = front_and_text(model_card(config, "fused", teacher=BASE, base=tmp_path))
    assert front["license"] == licence


@given(st.text())
def test_a_literal_is_one_constant_on_one_line(text: str) -> None:
    written = literal(text)
    assert ast.literal_eval(written) == text
    assert isinstance(ast.parse(written, mode="eval").body, ast.Constant)
    assert written.isascii() and written.isprintable()


@pytest.mark.parametrize("text", [text for text in HOSTILE if text])
def test_the_code_loads_what_it_is_told_and_calls_nothing_else(text: str, config: StudentConfig) -> None:
    """`model_card` receives only names of the Hub as teachers, but does not rely on it."""
    card = model_card(config, "diffusers-lora", teacher=text)
    check_code_alone(codes_of(card)[1], text)
    tree = ast.parse(code_of(card))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert sorted(ast.unparse(call) for call in calls) == [
        "RMDPipeline.from_pretrained", "image.save", "pipe", "pipe.to",
    ]  # fmt: skip
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert sorted(texts) == sorted([HERE, text, "cuda", "a red ball on the beach", "sample.png"])
    imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == ["import torch", "from rmd import RMDPipeline"]
    assert front_and_text(card)[0]["base_model"] == text
    plain = model_card(config, "diffusers-lora", teacher=BASE)
    assert shape(front_and_text(card)[1], html=True) == shape(front_and_text(plain)[1], html=True)


def check_code_alone(code: str, teacher: str) -> None:
    """Check that the code for diffusers alone loads a teacher and puts the student on it."""
    tree = ast.parse(code)
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert calls == ["DiffusionPipeline.from_pretrained", "pipe.load_student"]
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert texts == [teacher, HERE, HERE]


SLOW = [("sdxl", "fused"), ("sd3", "comfyui"), ("sd3", "fused"), ("wan", "comfyui")]
FORMATS = [
    *(
        pytest.param(family, "lora", to, BASE, marks=[pytest.mark.slow] if (family, to) in SLOW else [])
        for family in sorted(TINY)
        for to in ("diffusers-lora", "comfyui", "fused")
    ),
    *((family, "lora", "diffusers-lora", None) for family in ("pixart", "wan")),
    pytest.param("sdxl", "lora", "kohya", BASE, marks=pytest.mark.slow),
    *((family, "full", "diffusers-full", BASE) for family in sorted(TINY)),
]


@pytest.mark.parametrize(("family", "mode", "to", "name"), FORMATS)
def test_the_code_of_a_card_runs(
    family: str, mode: str, to: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export_student(make_student(tmp_path, family, mode), to, tmp_path / "out", base_model=name)
    holding = [path for path in out.rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()]
    assert holding == []
    card = (out / "README.md").read_text(encoding="utf-8")
    here = {BASE: str(tmp_path / "teacher"), TEACHER_HERE: str(tmp_path / "teacher"), HERE: str(out), '"cuda"': '"cpu"'}
    code, *alone = (_replaced(code, here) for code in codes_of(card))
    assert (
        len(alone)
        == (out / STANDALONE).exists()
        == (to not in ("comfyui", "kohya") and family_class(family).runs_alone)
    )
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    namespace: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    for more in alone:
        monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
        loaded: dict[str, Any] = {}
        exec(compile(more, "README.md", "exec"), loaded)
        assert len(loaded["pipe"]("a red ball")[0]) == 1
    front, _ = front_and_text(card)
    assert namespace["pipe"].backbone.denoiser.dtype == torch.bfloat16
    if family == "wan":
        assert front["pipeline_tag"] == "text-to-video"
        assert f"height=32, width=32, num_frames={FRAMES}).frames[0]" in code and "fps=16" in code
        assert len(namespace["video"]) == FRAMES
        assert Path("sample.mp4").stat().st_size > 0
    else:
        assert front["pipeline_tag"] == "text-to-image"
        with Image.open("sample.png") as image:
            assert image.size == (32, 32)
    assert "widget" not in front


def _replaced(text: str, values: dict[str, str]) -> str:
    for old, new in values.items():
        text = text.replace(old, new)
    return text


def test_frames_and_sizes_are_those_of_the_plan(config: StudentConfig) -> None:
    plan = config.plan.to_dict()
    plan["stages"] = [{"index": 1, "height": 480, "width": 832}, {"index": 2, "height": 960, "width": 1664}]
    plan["frames"] = 81

    class Other:
        family, values, guidance, runs_alone = "wan", config.values, config.guidance, True

    Other.plan = StepPlan.from_dict(plan)  # type: ignore[attr-defined]
    card = model_card(Other(), "fused", teacher=BASE)  # type: ignore[arg-type]
    assert "height=960, width=1664, num_frames=81" in code_of(card)
    assert "starts at 480x832 pixels and ends at 960x1664, with 81 frames" in re.sub(r"\s+", " ", card)
