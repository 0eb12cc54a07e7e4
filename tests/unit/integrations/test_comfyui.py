"""The mathematics of the nodes for ComfyUI is that of RMD, and their files and examples are whole.

tests/comfyui runs the nodes in ComfyUI itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from families import make_student
from safetensors.torch import load_file, save_file

from rmd.core.crossing import renoise, upsample
from rmd.core.noise import FlowSchedule, NoiseSchedule, VPSchedule
from rmd.core.plan import Crossing, StepPlan, build_plan
from rmd.core.randomness import CounterNoise, GeneratorNoise
from rmd.core.sampling import step_noise
from rmd.export.formats import export_student
from rmd.models.base import Conditioning
from rmd.models.student_config import read_student

FOLDER = Path(__file__).parents[3] / "integrations" / "comfyui"
WORKFLOWS = sorted(path.stem for path in (FOLDER / "workflows").glob("*.json"))
FAMILIES = ("sd3", "sdxl", "wan")
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
Nodes = Callable[[str], Any]


@pytest.fixture(scope="session")
def nodes() -> Iterator[Callable[[str], Any]]:
    """Return a function that imports a module; the package's `__init__`, which needs ComfyUI, is not run."""
    package = ModuleType("comfyui_nodes")
    package.__path__ = [str(FOLDER)]
    sys.modules["comfyui_nodes"] = package
    yield lambda name: import_module(f"comfyui_nodes.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "comfyui_nodes"]:
        del sys.modules[name]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- mathematics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest", "bicubic", "dct", "taps"])
@pytest.mark.parametrize("rule", ["plain", "corrected", "block"])
@pytest.mark.parametrize("shape", [(2, 4, 8, 12), (1, 4, 3, 6, 8)])
def test_crossings_are_those_of_rmd(rule: str, upsampling: str, shape: tuple[int, ...], nodes: Nodes) -> None:
    taps = (0.1, 0.7, 0.9, 0.3) if upsampling == "taps" else ()
    ratios = [2] if upsampling == "taps" else [2, 1.5]
    for ratio in ratios:
        size = (int(shape[-2] * ratio), int(shape[-1] * ratio))
        values: Any = {"rule": rule, "upsample": upsampling, "beta": 0.7, "taps": taps}
        ours, theirs = nodes("plan").Crossing(**values), Crossing(**values)
        x, fresh = noise(*shape), noise(*shape[:-2], *size, seed=1)
        found, wanted = nodes("crossing").enlarged(x, size, ours), upsample(x, size, theirs.upsample, taps)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
        found, wanted = nodes("crossing").mixed(x, fresh, ours), renoise(x, fresh, theirs)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("values", [{}, {"within": "fresh"}, {"eta": 0.6}])
def test_noise_within_a_stage_is_that_of_rmd(values: Any, nodes: Nodes) -> None:
    ours, theirs = nodes("plan").Crossing(**values), Crossing(**values)
    eps_hat, eps = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)
    drawn = eps if nodes("crossing").draws_within(ours) else None
    assert torch.equal(nodes("crossing").kept(eps_hat, drawn, ours), step_noise(eps_hat, eps, theirs))


def plan_of(schedule: NoiseSchedule, **changes: Any) -> StepPlan:
    return build_plan(schedule, sides=[(512, 512), (1024, 1024)], steps=4, split=[2, 2], multiple=16, **changes)


def given(plan: StepPlan, nodes: Nodes, folder: Path) -> Any:
    """Return a plan as the nodes read it."""
    values = {"version": 1, "family": "sdxl", "conditioning": Conditioning().model_dump(), "plan": plan.to_dict()}
    (folder / "rmd_config.json").write_text(json.dumps(values), encoding="utf-8")
    return nodes("plan").read_plan(folder / "rmd_config.json")


@pytest.mark.parametrize("end", [False, True])
def test_levels_of_a_table_are_those_of_rmd(end: bool, nodes: Nodes, tmp_path: Path) -> None:
    schedule = VPSchedule.from_config({**BETAS, "rescale_betas_zero_snr": end})
    table = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt().float()
    table[-1] = min(float(table[-1]), 4500.0)  # ComfyUI's last level of a table that ends in noise
    plan = plan_of(schedule)
    assert any(step.model_time % 1 for step in plan.steps)
    found = nodes("plan").levels(given(plan, nodes, tmp_path), table, ends_in_noise=end)
    for (sigma, time), step in zip(found, plan.steps, strict=True):
        assert time == pytest.approx(schedule.model_timestep(step.model_time))
        alpha = 1 / (1 + sigma**2) ** 0.5
        assert alpha == pytest.approx(float(schedule.alpha(step.model_time)), abs=1.1e-6)
        assert alpha * sigma == pytest.approx(float(schedule.sigma(step.model_time)), abs=1e-6)


def test_levels_of_a_flow_are_those_of_rmd(nodes: Nodes, tmp_path: Path) -> None:
    schedule = FlowSchedule(shift=3.0)
    plan = plan_of(schedule)
    found = nodes("plan").levels(given(plan, nodes, tmp_path), None)
    wanted = [(float(schedule.sigma(t)), schedule.model_timestep(t)) for t in (step.model_time for step in plan.steps)]
    assert found == [pytest.approx(pair) for pair in wanted]


@pytest.mark.parametrize("size", [(1024, 1024), (768, 1024), (1536, 1152), (832, 1216), (48, 64)])
def test_sizes_are_those_of_rmd(size: tuple[int, int], nodes: Nodes, tmp_path: Path) -> None:
    plan = plan_of(FlowSchedule(), match_side=(2048, 2048))
    wanted, found = plan.resized(*size, 16), given(plan, nodes, tmp_path).fitted(*size, 16)
    assert found.stages == tuple((stage.height, stage.width) for stage in wanted.stages)
    assert found.told(0) == ((wanted.match_stage.height, wanted.match_stage.width), found.stages[0])


def test_plans_of_numbers_have_the_sizes_of_plans_of_files(nodes: Nodes, tmp_path: Path) -> None:
    plan = given(plan_of(FlowSchedule()), nodes, tmp_path)
    times = ", ".join(str(time) for _, time in plan.steps)
    made = nodes("plan").plan_of_numbers("0.5, 1", "2 2", times, plan.crossing)
    for size in ((1024, 1024), (1216, 832)):
        wanted = replace(plan.fitted(*size, 16), family="")
        assert made.fitted(*size, 16) == wanted


def test_noise_is_that_of_rmd_and_of_comfyui(nodes: Nodes) -> None:
    sources, shapes = nodes("noise").SOURCES, {"start": (2, 4, 8, 8), "crossing-3": (2, 4, 16, 16)}
    keyed, alone, shared = (sources[name](7, [3, 4]) for name in ("rmd keyed", "rmd", "comfyui"))
    ours, each = CounterNoise(7, [3, 4]), GeneratorNoise([torch.Generator().manual_seed(seed) for seed in (10, 11)])
    batch = torch.Generator().manual_seed(7)
    for purpose, shape in shapes.items():
        assert torch.equal(keyed.normal(shape, purpose), ours.normal(shape, purpose))
        assert torch.equal(alone.normal(shape, purpose), each.normal(shape, purpose))
        rows = [torch.randn((1, *shape[1:]), generator=batch) for _ in range(5)]
        assert torch.equal(shared.normal(shape, purpose), torch.cat(rows[3:]))
    whole = sources["comfyui"](7, range(2)).normal((2, 4, 8, 8), "start")
    assert torch.equal(whole, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7)))


# --- files of students ------------------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("family", FAMILIES)
def test_students_are_read(family: str, nodes: Nodes, tmp_path: Path) -> None:
    """Their plans are RMD's, and their adapters have the names of an export for ComfyUI, with a scale of 1."""
    source = make_student(tmp_path, family, "lora")
    config, plan = read_student(source), nodes("plan").read_plan(source / "rmd_config.json")
    assert plan.family == family and plan.steps == tuple((s.stage - 1, s.model_time) for s in config.plan.steps)
    assert plan.stages == tuple((stage.height, stage.width) for stage in config.plan.stages)
    assert vars(plan.crossing) == vars(config.plan.crossing)
    assert (plan.original, plan.target) == (config.conditioning.original, config.conditioning.target)
    export = export_student(source, "comfyui", tmp_path / "export") / "pytorch_lora_weights.safetensors"
    found = nodes("adapter").read_adapter(source / export.name, family)
    again = nodes("adapter").read_adapter(export, family)
    kinds = {".lora_A.": ".lora_down.", ".lora_B.": ".lora_up."}
    wanted = {name: tensor for name, tensor in load_file(export).items() if not name.endswith(".alpha")}
    for ours, theirs in kinds.items():
        wanted = {name.replace(ours, theirs): tensor for name, tensor in wanted.items()}
    assert found.keys() == wanted.keys() <= again.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)
        assert torch.equal(again[name], tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not JSON", r"rmd_config.json cannot be read"),
        ("[]", r"holds no object"),
        ({"version": 2}, r"has version 2, not 1"),
        ({"plan": None}, r"not a student's config"),
        ({"conditioning": {}}, r"lacks 'pos_rescale'"),
        ({"conditioning": {"pos_rescale": True, "original": "final", "target": "stage"}}, r"rescales positions"),
        ({"steps": []}, r"must run through its stages in order"),
        ({"stages": []}, r"at least one stage"),
        ({"crossing": {"rule": "else"}}, r"rule is one of plain, corrected, block, not 'else'"),
        ({"crossing": {"beta": 2.0}}, r"beta is a number from 0 to 1, not 2"),
        ({"crossing": {"color": "red"}}, r"not a student's config"),
        ({"match_side": [1]}, r"not a student's config"),
    ],
)
def test_broken_configs_are_refused(change: Any, message: str, nodes: Nodes, tmp_path: Path) -> None:
    path = tmp_path / "rmd_config.json"
    given(plan_of(FlowSchedule()), nodes, tmp_path)
    if isinstance(change, dict):
        values = json.loads(path.read_text(encoding="utf-8"))
        (values if change.keys() <= values.keys() else values["plan"]).update(change)
        change = json.dumps(values)
    path.write_text(change, encoding="utf-8")
    with pytest.raises(nodes("plan").PlanError, match=message):
        nodes("plan").read_plan(path)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("half, 1", "2, 2", "1000"), r"scales is a list of numbers"),
        (("0.5, 1", "2", "1000"), r"one whole number for each of the 2 scales"),
        (("0.5, 1", "2, 1.5", "1000"), r"one whole number"),
        (("0.5, 0.9", "1, 1", "1000, 500"), r"the last of the scales is 1, not 0.9"),
        (("0.5, 1", "2, 2", "1000, 500"), r"one number for each of the 4 steps, got 2"),
        (("0.5, 1", "2, 2", "900, 800, 700, 300"), r"the first time of a plan is 1000"),
        (("0.5, 1", "2, 2", "1000, 800, 300, 700"), r"the times of a stage must fall, but 700 follows 300"),
        (("0.5, 1", "2, 2", "1000, 800, 700, 0"), r"above 0 and up to 1000"),
        (("1, 1", "1, 1", "1000, 500"), r"each stage of a plan must be larger"),
        (("-1, 1", "1, 1", "1000, 500"), r"sides above 0"),
        (("inf, 1", "1, 1", "1000, 500"), r"scales is a list of numbers"),
    ],
)
def test_broken_numbers_are_refused(texts: tuple[str, str, str], message: str, nodes: Nodes) -> None:
    with pytest.raises(nodes("plan").PlanError, match=message):
        nodes("plan").plan_of_numbers(*texts, nodes("plan").Crossing())


def test_sizes_that_do_not_suit_a_plan_are_refused(nodes: Nodes) -> None:
    plan = nodes("plan").plan_of_numbers("0.5, 1", "1, 1", "1000, 500", nodes("plan").Crossing())
    with pytest.raises(nodes("plan").PlanError, match=r"the sides of 1000x1024 are not divisible by 32: use 992x1024"):
        plan.fitted(1024, 1000, 32)
    with pytest.raises(nodes("plan").PlanError, match=r"32x32 is too small for this plan"):
        plan.fitted(32, 32, 32)


def test_broken_adapters_are_refused(nodes: Nodes, tmp_path: Path) -> None:
    path, read, error = tmp_path / "a.safetensors", nodes("adapter").read_adapter, nodes("plan").PlanError
    path.write_bytes(b"no tensors")
    with pytest.raises(error, match=r"a.safetensors cannot be read"):
        read(path, "sdxl")
    save_file({"unet.x.lora_A.weight": torch.full((1, 2), torch.nan)}, path)
    with pytest.raises(error, match=r"not finite: export the student again"):
        read(path, "sdxl")
    save_file({"unet.x.weight": torch.ones(1)}, path)
    with pytest.raises(error, match=r"unet.x.weight is not a tensor of a LoRA student"):
        read(path, "sdxl")
    save_file({"unet.x.lora_A.weight": torch.ones(1, 2)}, path, metadata={"lora_adapter_metadata": "{}"})
    with pytest.raises(error, match=r"does not give the scale"):
        read(path, "sdxl")


# --- the package ------------------------------------------------------------------------------------------------------


def graph(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an example in the form of the page and in that of the API."""
    page, api = (FOLDER / "workflows" / part / f"{name}.json" for part in ("", "api"))
    return json.loads(page.read_text(encoding="utf-8")), json.loads(api.read_text(encoding="utf-8"))


@pytest.fixture
def mappings(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The nodes by name; the list of students, for which ComfyUI knows the folders, is empty."""
    monkeypatch.setitem(sys.modules, "comfyui_nodes.students", SimpleNamespace(names=list))
    monkeypatch.setattr(sys.modules["comfyui_nodes"], "students", SimpleNamespace(names=list), raising=False)
    known: dict[str, Any] = nodes("nodes").NODE_CLASS_MAPPINGS
    return known


def test_there_is_an_example_for_each_family() -> None:
    assert WORKFLOWS == ["sd35", "sdxl", "wan"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_examples_name_the_inputs_that_the_nodes_have(name: str, mappings: dict[str, Any]) -> None:
    _, api = graph(name)
    ours = [node for node in api.values() if node["class_type"] in mappings]
    assert len(ours) == 2
    for node in ours:
        inputs = mappings[node["class_type"]].INPUT_TYPES()
        assert node["inputs"].keys() == {**inputs["required"], **inputs.get("optional", {})}.keys()
        for key, value in node["inputs"].items():
            kind = {**inputs["required"], **inputs.get("optional", {})}[key][0]
            if isinstance(kind, list):
                assert value in kind or key == "student"
            elif isinstance(value, list):
                source, output = value
                known = mappings.get(api[source]["class_type"])
                assert known is None or known.RETURN_TYPES[output] == kind


@pytest.mark.parametrize("name", WORKFLOWS)
def test_both_forms_of_an_example_are_the_same_graph(name: str) -> None:
    page, api = graph(name)
    nodes = {str(node["id"]): node for node in page["nodes"] if "Note" not in node["type"]}
    links = {link[0]: link for link in page["links"]}
    assert {number: node["type"] for number, node in nodes.items()} == {
        number: node["class_type"] for number, node in api.items()
    }
    for number, node in nodes.items():
        linked = {each["name"]: each["link"] for each in node["inputs"] if each.get("link") is not None}
        inputs = api[number]["inputs"]
        assert linked.keys() == {key for key, value in inputs.items() if isinstance(value, list)}
        for key, link in linked.items():
            _, source, output, target, place, kind = links[link]
            assert [str(source), output] == inputs[key] and str(target) == number
            assert node["inputs"][place]["name"] == key and node["inputs"][place]["type"] == kind
            assert nodes[str(source)]["outputs"][output]["type"] == kind
            assert link in nodes[str(source)]["outputs"][output]["links"]
        values = [value for value in inputs.values() if not isinstance(value, list)]
        assert [value for value in node["widgets_values"] if value != "randomize"] == values


def test_plan_of_the_widgets_defaults_is_that_of_the_recipe(mappings: dict[str, Any], nodes: Nodes) -> None:
    from rmd.recipes.schema import load_recipe

    inputs = mappings["RMDPlan"].INPUT_TYPES()["required"]
    values = {key: options.get("default", kind[0]) for key, (kind, options) in inputs.items()}
    (plan,) = mappings["RMDPlan"]().make(**values)
    wanted = load_recipe("sdxl").build_plan()
    assert [stage for stage, _ in plan.steps] == [step.stage - 1 for step in wanted.steps]
    assert [time for _, time in plan.steps] == pytest.approx([step.model_time for step in wanted.steps], abs=0.1)
    assert (plan.original, plan.target, plan.crossing.rule) == ("final", "stage", wanted.crossing.rule)
    assert plan.crossing.beta == wanted.crossing.beta


def test_the_registry_of_comfyui_finds_what_it_needs(mappings: dict[str, Any], nodes: Nodes) -> None:
    from importlib.metadata import version

    text = (FOLDER / "pyproject.toml").read_text(encoding="utf-8")
    for line in ('name = "rmd-cascade"', "[tool.comfy]", "PublisherId", 'DisplayName = "', "dependencies = []"):
        assert line in text
    assert f'version = "{version("rmd")}"' in text and (FOLDER / "README.md").is_file()
    assert nodes("nodes").NODE_DISPLAY_NAME_MAPPINGS.keys() == mappings.keys()
    for kind in mappings.values():
        assert callable(getattr(kind, kind.FUNCTION)) and len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES)
