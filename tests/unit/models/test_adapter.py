"""LoRA students on pipelines with other adapters, and on compiled or quantised ones; or an error that says why not."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from families import make_student
from helpers import PROMPTS
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.models.adapter import ADAPTER, LORA_NAME
from rmd.models.student import load_student
from rmd.sample.pipeline import RMDPipeline

with_loras = pytest.mark.parametrize("family", ["sdxl", "wan", pytest.param("sd3", marks=pytest.mark.slow)])
"""Families whose pipelines have diffusers' adapter methods, such as `set_adapters`."""
families = pytest.mark.parametrize("family", ["sdxl", "pixart", "wan", pytest.param("sd3", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family's LoRA student, made once per session, with its teacher beside it."""
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = make_student(tmp_path_factory.mktemp(family), family, "lora")
        return made[family]

    return find


def base(student: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(student.parent / "teacher")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def network(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def add_style(pipe: Any, name: str = "style") -> None:
    """Add another adapter, with another rank and other layers; afterwards it alone is active."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_k"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if hasattr(network(pipe), "add_adapter"):
            network(pipe).add_adapter(config, adapter_name=name)
        else:
            inject_adapter_in_model(config, network(pipe), adapter_name=name)


def fuse_a_style(pipe: Any) -> None:
    add_style(pipe)
    pipe.fuse_lora(adapter_names=["style"])
    pipe.set_adapters([ADAPTER, "style"])


def merged(pipe: Any, student: Path | None, style: float) -> Any:
    """Build the pipeline with plain weights W + BA, computed from the student's file and the style."""
    if style:
        styled = base_like(pipe)
        add_style(styled)
        tuned = dict(network(styled).named_modules())
        for name, layer in network(pipe).named_modules():
            if hasattr(tuned.get(name), "lora_A"):
                a, b = tuned[name].lora_A["style"].weight, tuned[name].lora_B["style"].weight
                layer.weight.data += style * 2.0 * b @ a
    if student is not None:
        state = load_file(student / LORA_NAME)
        for key in [key for key in state if ".lora_A." in key]:
            layer = network(pipe).get_submodule(key.partition(".")[2].removesuffix(".lora_A.weight"))
            a, b = state[key], state[key.replace("lora_A", "lora_B")]
            layer.weight.data += 2.0 * (b.flatten(1) @ a.flatten(1)).view_as(layer.weight)
    return pipe


def base_like(pipe: Any) -> Any:
    return DiffusionPipeline.from_pretrained(pipe.config._name_or_path)


def sample(pipe: RMDPipeline) -> Tensor:
    latents: Tensor = pipe(PROMPTS[:1], generator=torch.Generator().manual_seed(0), output_type="latent")[0]
    return latents / latents.abs().max()


@cache
def expected(student: Path, style: float = 0.0) -> Tensor:
    """Return what the student samples on a base into which both adapters were merged by hand."""
    pipe = RMDPipeline.from_pretrained(student)
    plain = merged(base(student), student, style)
    setattr(pipe, pipe.backbone.denoiser_name, network(plain))
    return sample(RMDPipeline.of(pipe, pipe.student.model_copy(update={"mode": "full"})))


def same(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5)


@families
def test_a_style_that_was_active_before_stays_active(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    pipe = base(student)
    add_style(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # two adapters are intended: PEFT need not warn
        put_on = RMDPipeline.from_pipe(pipe, student)
    same(sample(put_on), expected(student, style=1.0))


@with_loras
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_style_keeps_its_weight(family: str, weight: float, students: Callable[[str], Path]) -> None:
    student = students(family)
    pipe = base(student)
    add_style(pipe)
    pipe.set_adapters(["style"], [weight])
    same(sample(RMDPipeline.from_pipe(pipe, student)), expected(student, style=weight))


@with_loras
def test_a_style_that_was_disabled_stays_off(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    pipe = base(student)
    add_style(pipe)
    pipe.disable_lora()
    same(sample(RMDPipeline.from_pipe(pipe, student)), expected(student))


@families
def test_a_style_added_later_deactivates_the_student_which_is_an_error(
    family: str, students: Callable[[str], Path]
) -> None:
    student = students(family)
    pipe = RMDPipeline.from_pipe(base(student), student)
    add_style(pipe)
    with pytest.raises(RMDError, match=r"^the student's adapter 'rmd' is not active, but style is: ") as caught:
        sample(pipe)
    if family == "pixart":
        pipe.load_student(student)
    else:
        pipe.set_student()
    assert str(caught.value).endswith("activate it beside the others with set_student('rmd')")
    same(sample(pipe), expected(student, style=1.0))


@families
def test_loading_the_same_student_twice_changes_nothing(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    pipe = base(student)
    RMDPipeline.from_pipe(pipe, student)
    same(sample(RMDPipeline.from_pipe(pipe, student)), expected(student))


def test_a_second_student_on_the_same_pipeline_is_refused(students: Callable[[str], Path], tmp_path: Path) -> None:
    student = students("sd3")
    other = changed(student, tmp_path, lambda state: {name: 2 * tensor for name, tensor in state.items()})
    pipe = base(student)
    first = RMDPipeline.from_pipe(pipe, student)
    with pytest.raises(RMDError, match=r"^the pipeline carries another student of the name 'rmd' already: give "):
        RMDPipeline.from_pipe(pipe, other)
    same(sample(first), expected(student))


@families
def test_several_students_share_a_base(family: str, students: Callable[[str], Path], tmp_path: Path) -> None:
    student = students(family)
    other = changed(student, tmp_path, lambda state: {name: 2 * tensor for name, tensor in state.items()})
    pipe = RMDPipeline.from_pipe(base(student), student)
    add_style(pipe)
    pipe.load_student(other, "other")
    assert pipe.student.source == str(other)
    second = sample(pipe)
    pipe.set_student()
    same(sample(pipe), expected(student, style=1.0))
    pipe.set_student("other")
    same(sample(pipe), second)
    assert float((second - expected(student, style=1.0)).abs().max()) > 1e-3
    pipe.unload_student("other")
    with pytest.raises(RMDError, match=r"^this pipeline has no student: put one on it with load_student$"):
        sample(pipe)
    pipe.set_student()
    same(sample(pipe), expected(student, style=1.0))
    with pytest.raises(RMDError, match=r"^unknown student 'other': use rmd$"):
        pipe.set_student("other")
    with pytest.raises(
        RMDError, match=r"^a student's name is made of letters, digits and underscores, and 'a.b' is not"
    ):
        pipe.load_student(other, "a.b")


@families
def test_a_compiled_network_accepts_a_student(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    pipe = base(student)
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
    loaded = RMDPipeline.from_pipe(pipe, student)
    with torch.compiler.set_stance("force_eager"):
        same(sample(loaded), expected(student))


class Packed(nn.Linear):
    """A linear layer like those of bitsandbytes: eight bits per weight in one column, unpacked at every call."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.scale = float(layer.weight.detach().abs().max()) / 127
        packed = (layer.weight.detach() / self.scale).round().add(128).to(torch.uint8).view(-1, 1)
        self.bias = layer.bias
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight.float() - 128).view(self.out_features, self.in_features) * self.scale
        return nn.functional.linear(x, weight, self.bias)


@families
def test_a_quantised_base_accepts_a_student(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    pipe = base(student)
    for name, layer in list(network(pipe).named_modules()):
        if type(layer) is nn.Linear and name.endswith(("to_q", "to_k", "to_v")):
            setattr(network(pipe).get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], Packed(layer))
    latents = sample(RMDPipeline.from_pipe(pipe, student))
    assert 0 < float((latents - expected(student)).abs().max()) < 0.1


Change = Callable[[Any], object]
CHANGES: list[tuple[Change, str]] = [
    (
        lambda pipe: pipe.delete_adapters("rmd"),
        r"^the student's adapter 'rmd' is not on the pipeline any more: put it on",
    ),
    (
        lambda pipe: pipe.unload_lora_weights(),
        r"^the student's adapter 'rmd' is not on the pipeline any more: put it on",
    ),
    (lambda pipe: pipe.disable_lora(), r"the student with them: call enable_lora\(\)$"),
    (
        fuse_a_style,
        r"^the adapters style were fused without the student's, which is therefore off: call unfuse_lora",
    ),
]


@with_loras
def test_whatever_deactivates_the_student_is_an_error(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    for change, sentence in CHANGES:
        pipe = RMDPipeline.from_pipe(base(student), student)
        change(pipe)
        with pytest.raises(RMDError, match=sentence):
            sample(pipe)


@with_loras
def test_fusing_and_unfusing_leave_the_student_the_same(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    pipe = RMDPipeline.from_pipe(base(student), student)
    wanted = expected(student)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the student's adapter")
        pipe.fuse_lora()
        same(sample(pipe), wanted)
        pipe.unfuse_lora()
        same(sample(pipe), wanted)


@with_loras
def test_another_scale_is_a_warning_with_that_scale(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    for change, scale in (
        (lambda pipe: pipe.set_adapters("rmd", 0.5), "0.5"),
        (lambda pipe: pipe.fuse_lora(lora_scale=0.7), "0.7"),
    ):
        pipe = RMDPipeline.from_pipe(base(student), student)
        change(pipe)
        with pytest.warns(UserWarning, match=f"^the student's adapter is scaled by {scale}, but was distilled for"):
            sample(pipe)


@with_loras
def test_a_base_with_fused_adapters_is_refused(family: str, students: Callable[[str], Path]) -> None:
    student = students(family)
    pipe = base(student)
    add_style(pipe)
    pipe.fuse_lora()
    with pytest.raises(RMDError, match=r"^the adapters style are fused into this pipeline, which switches others off"):
        RMDPipeline.from_pipe(pipe, student)
    pipe.unload_lora_weights()
    same(sample(RMDPipeline.from_pipe(pipe, student)), expected(student, style=1.0))


def changed(
    student: Path, folder: Path, state: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    header: Callable[[dict[str, Any]], object] = dict,
) -> Path:  # fmt: skip
    """Copy a student, with other tensors or another header in its file."""
    folder.mkdir(exist_ok=True)
    (folder / "rmd_config.json").write_bytes((student / "rmd_config.json").read_bytes())
    with safe_open(student / LORA_NAME, "pt") as file:
        values = header(json.loads(file.metadata()["lora_adapter_metadata"]))
    metadata = {"format": "pt"}
    if values is not None:
        metadata["lora_adapter_metadata"] = values if isinstance(values, str) else json.dumps(values)
    save_file(state(load_file(student / LORA_NAME)), folder / LORA_NAME, metadata=metadata)
    return folder


PART = {"sdxl": "unet"}


@families
@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("use_dora", True, r"\(lora_adapter_metadata\): there is no key use_dora"),
        ("runtime_config", {}, "there is no key runtime_config"),
        ("modules_to_save", ["conv_in"], "there is no key modules_to_save"),
        ("r", "2", "r should be a whole number, but is '2'"),
        ("r", 4, r" does not fit this base: .* is 2x\d+(x\d+x\d+)?, not 4x"),
        ("r", 10**9, "is 2x"),
        ("lora_alpha", math.nan, "is not valid JSON"),
        ("lora_alpha", 0, r"lora_alpha should be greater than 0\.0, but is 0"),
        ("target_modules", [], "target_modules should be a list of at least 1"),
        ("target_modules", ".*", "target_modules should be a list, but is '.*'"),
    ],
)
def test_other_settings_in_the_header_are_refused(
    family: str, key: str, value: object, sentence: str, students: Callable[[str], Path], tmp_path: Path
) -> None:
    name = f"{PART.get(family, 'transformer')}.{key}"
    student = changed(students(family), tmp_path, header=lambda values: {**values, name: value})
    with pytest.raises(RMDError, match=sentence):
        RMDPipeline.from_pipe(base(students(family)), student)


@pytest.mark.parametrize("header", ["[]", "{", None])
def test_a_header_without_settings_is_refused(
    header: str | None, students: Callable[[str], Path], tmp_path: Path
) -> None:
    student = changed(students("pixart"), tmp_path, header=lambda _: header)
    with pytest.raises(RMDError, match=r"lora_adapter_metadata") as caught:
        RMDPipeline.from_pipe(base(students("pixart")), student)
    assert "\n" not in str(caught.value)


@families
def test_a_file_with_other_tensors_is_refused(family: str, students: Callable[[str], Path], tmp_path: Path) -> None:
    def broken(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**state, next(iter(state)): torch.full_like(next(iter(state.values())), math.nan)}

    for change, sentence in (
        (broken, r"pytorch_lora_weights\.safetensors: the tensor .*lora_A.weight holds values that are not finite"),
        (
            lambda state: {**state, "text_encoder.x.lora_A.weight": torch.zeros(2, 2)},
            "is not one of a student's tensors",
        ),
        (lambda state: {**state, "x": torch.zeros(2)}, "is not one of a student's tensors"),
        (lambda state: {k.replace("to_q", "to_z"): v for k, v in state.items()}, r"it has no layer .*to_z"),
        (
            lambda state: {k: v[..., :1].contiguous() if "lora_A" in k else v for k, v in state.items()},
            r"numbers, not (1|8x3x1)$",
        ),
    ):
        student = changed(students(family), tmp_path, change)
        pipe = base(students(family))
        with pytest.raises(RMDError, match=sentence):
            RMDPipeline.from_pipe(pipe, student)
        same(
            sample(RMDPipeline.from_pipe(pipe, students(family))), expected(students(family))
        )  # the refused file left no trace


def test_pixart_refuses_tensors_of_layers_that_the_header_does_not_name(
    students: Callable[[str], Path], tmp_path: Path
) -> None:
    """Checked for PixArt only: for the other families, diffusers takes the layers from the tensors."""
    student = changed(
        students("pixart"), tmp_path, header=lambda values: {**values, "transformer.target_modules": ["to_q"]}
    )
    pipe = base(students("pixart"))
    with pytest.raises(RMDError, match=r" does not fit this base: .* is not in the network$"):
        RMDPipeline.from_pipe(pipe, student)
    same(sample(RMDPipeline.from_pipe(pipe, students("pixart"))), expected(students("pixart")))


@families
def test_an_adapter_that_lacks_a_tensor_is_refused(family: str, tmp_path: Path) -> None:
    student = make_student(tmp_path, family, "lora")
    path = student / LORA_NAME
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for kind in ("A", "B"):
        name = next(key for key in tensors if key.endswith(f"lora_{kind}.weight"))
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, path, metadata=metadata)
        with pytest.raises(RMDError, match=f"it lacks the tensor .*lora_{kind}.weight$"):
            load_student(student)
