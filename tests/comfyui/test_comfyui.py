"""ComfyUI's own server, with its own networks on the CPU, gives RMDPipeline's latents; so do the workflows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_server import NODES, Refused, Server
from safetensors.torch import load_file, save_file
from small_models import SDXL_CONFIG, encoded, student
from torch import Tensor
from websockets.sync.client import connect

from rmd.core.plan import Crossing, StepPlan
from rmd.core.randomness import CounterNoise
from rmd.export.formats import export_student
from rmd.models.cond import Cond
from rmd.models.generate import sample_latents
from rmd.sample.pipeline import RMDPipeline

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest value of the latents."""
WORKFLOWS = {"sdxl": "sdxl", "sd3": "sd35", "wan": "wan"}
FAMILIES = sorted(WORKFLOWS)
SEED = 7
Prompt = dict[str, Any]
Case = tuple[RMDPipeline, Prompt]


def own_latents(pipe: RMDPipeline, x0: Tensor) -> Tensor:
    """Return latents of RMD as those of the VAE itself, which ComfyUI passes from node to node."""
    config = pipe.vae.config
    if x0.ndim == 5:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return x0 * std + mean
    return x0 / config.scaling_factor + (config.shift_factor or 0.0)


def place(server: Server, family: str, source: Path, name: str) -> Path:
    """Put a student and its teacher's weights where users put them; return the teacher's file."""
    shutil.copytree(source, server.folder / "models" / "rmd_students" / name)
    part = "unet" if family == "sdxl" else "transformer"
    weights = source.parent / "teacher" / part / "diffusion_pytorch_model.safetensors"
    target = server.folder / ("input" if family == "sdxl" else "models/diffusion_models") / f"{name}.safetensors"
    tensors = load_file(weights)
    if family == "wan":
        tensors = {original(key): tensor for key, tensor in tensors.items()}
    save_file(tensors, target)
    save_file(encoded(family), server.folder / "input" / f"{name}-prompt.safetensors")
    return target


def original(name: str) -> str:
    """Return the name in Wan's own code of a tensor of its network in diffusers."""
    head, _, rest = name.partition(".")
    if head == "blocks":
        number, _, rest = rest.partition(".")
        parts = {"attn1": "self_attn", "attn2": "cross_attn", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
        parts |= {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm2": "norm3"}
        for ours, theirs in (parts | {"scale_shift_table": "modulation"}).items():
            rest = rest.replace(ours, theirs)
        return f"blocks.{number}.{rest}"
    parts = {"time_embedder.linear_1": "time_embedding.0", "time_embedder.linear_2": "time_embedding.2"}
    parts |= {"text_embedder.linear_1": "text_embedding.0", "text_embedder.linear_2": "text_embedding.2"}
    parts |= {"time_proj": "time_projection.1", "proj_out": "head.head", "scale_shift_table": "head.modulation"}
    whole = name.removeprefix("condition_embedder.")
    found = next((ours for ours in parts if whole.startswith(ours)), None)
    return name if found is None else parts[found] + whole.removeprefix(found)


def workflow(family: str, name: str, *, batch: int = 2, height: int = 128, width: int = 128) -> Prompt:
    """Return the example of a family for small models: its prompts come from a file, and SDXL's model does, too."""
    text = (NODES / "workflows" / "api" / f"{WORKFLOWS[family]}.json").read_text(encoding="utf-8")
    prompt: Prompt = {
        number: node
        for number, node in json.loads(text).items()
        if not node["class_type"].startswith(("VAE", "Save", "CLIPLoader", "CreateVideo"))
    }
    prompt["3"] = {"class_type": "TestConditioning", "inputs": {"file": f"{name}-prompt.safetensors"}}
    if family == "sdxl":
        values = {"file": f"{name}.safetensors", "config": json.dumps(SDXL_CONFIG), "velocity": name.endswith("v")}
        prompt["1"] = {"class_type": "TestSDXL", "inputs": values}
    else:  # ComfyUI finds SD3's configuration in a file of the network alone, as Wan's
        values = {"unet_name": f"{name}.safetensors", "weight_dtype": "default"}
        prompt["1"] = {"class_type": "UNETLoader", "inputs": values}
    prompt["2"]["inputs"]["student"] = name
    prompt["4"]["inputs"] |= {"height": height, "width": width, "batch_size": batch}
    prompt["5"]["inputs"] |= {"seed": SEED, "noise": "rmd"}
    if family == "wan":
        prompt["4"]["inputs"]["length"] = 5
    return prompt


@pytest.fixture(scope="session")
def case(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Return a function that makes a student once, loads it by RMD, and puts it into ComfyUI with its workflow."""

    @cache
    def make(family: str, mode: str = "lora", kind: str = "") -> RMDPipeline:
        folder, name = tmp_path_factory.mktemp("student"), f"{family}-{mode}{kind}"
        options = {"teacher": {"velocity": True}} if kind else {}
        source = student(folder, family, mode, **options)
        place(server, family, source, name)
        pipe = RMDPipeline.from_pretrained(source)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def both(family: str, mode: str = "lora", kind: str = "", **sizes: int) -> Case:
        pipe, prompt = make(family, mode, kind), workflow(family, f"{family}-{mode}{kind}", **sizes)
        if mode == "full":
            del prompt["1"], prompt["2"]["inputs"]["model"]
        return pipe, prompt

    return both


def expected(pipe: RMDPipeline, *, batch: int = 2, **sizes: int) -> Tensor:
    """Return RMDPipeline's latents, with one generator for each sample."""
    names = {"embeds": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    given: Any = {names[name]: tensor for name, tensor in prompts(pipe, batch).items()}
    generators = [torch.Generator().manual_seed(SEED + index) for index in range(batch)]
    x0 = pipe(generator=generators, output_type="latent", return_dict=False, **given, **sizes)[0]
    return own_latents(pipe, x0)


def prompts(pipe: RMDPipeline, batch: int) -> dict[str, Tensor]:
    """Return an encoded prompt, repeated for a batch."""
    return {name: tensor.repeat_interleave(batch, 0) for name, tensor in encoded(pipe.student.family).items()}


def with_crossing(pipe: RMDPipeline, **values: Any) -> RMDPipeline:
    """Return the pipeline with another rule for the crossings of its plan."""
    plan = replace(pipe.plan, crossing=Crossing(**values))
    return RMDPipeline.of(pipe, pipe.student.model_copy(update={"plan": plan}))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    print(f"largest difference {difference:.1e}")
    assert difference <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_are_those_of_rmd(family: str, case: Callable[..., Case], server: Server) -> None:
    pipe, prompt = case(family)
    assert pipe.plan.crossing.rule == "block" and [step.stage for step in pipe.plan.steps] != [1] * 4
    assert_close(server.latents(prompt, "5"), expected(pipe))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_sizes(family: str, case: Callable[..., Case], server: Server) -> None:
    pipe, prompt = case(family, batch=1, height=96, width=160)
    assert_close(server.latents(prompt, "5"), expected(pipe, batch=1, height=96, width=160))


def test_the_adapter_changes_the_samples(case: Callable[..., Case], server: Server) -> None:
    _, prompt = case("sd3")
    bare = json.loads(json.dumps(prompt))
    bare["5"]["inputs"]["model"] = ["1", 0]
    found, teacher = server.latents(prompt, "5"), server.latents(bare, "5")
    assert float((found - teacher).abs().max()) > 30 * TOLERANCE * float(teacher.abs().max())


def test_zero_terminal_snr(case: Callable[..., Case], server: Server) -> None:
    pipe, prompt = case("sdxl", "lora", "-v")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert_close(server.latents(prompt, "5"), expected(pipe))


@pytest.mark.parametrize("family", ["sd3", "wan"])
def test_full_students(family: str, case: Callable[..., Case], server: Server) -> None:
    pipe, prompt = case(family, "full")
    assert_close(server.latents(prompt, "5"), expected(pipe))


@pytest.mark.parametrize("family", FAMILIES)
def test_exports_beside_other_loras(family: str, case: Callable[..., Case], server: Server, tmp_path: Path) -> None:
    pipe, prompt = case(family)
    export = export_student(pipe.student.source, "comfyui", tmp_path / "export")
    loras = server.folder / "models" / "loras"
    shutil.copy(export / "pytorch_lora_weights.safetensors", loras / f"{family}.safetensors")
    shutil.copy(export / "rmd_config.json", loras / f"{family}.rmd_config.json")
    prompt["2"]["inputs"]["student"] = f"{family}.safetensors"
    assert_close(server.latents(prompt, "5"), expected(pipe))


def test_style_loras_before_and_after_the_student(case: Callable[..., Case], server: Server, tmp_path: Path) -> None:
    pipe, prompt = case("sd3")
    export = export_student(pipe.student.source, "comfyui", tmp_path / "export")
    shutil.copy(export / "pytorch_lora_weights.safetensors", server.folder / "models" / "loras" / "style.safetensors")
    bare, before, after = (json.loads(json.dumps(prompt)) for _ in range(3))
    values = {"lora_name": "style.safetensors", "strength_model": 0.5}
    before["style"] = {"class_type": "LoraLoaderModelOnly", "inputs": {**values, "model": ["1", 0]}}
    before["2"]["inputs"]["model"] = ["style", 0]
    after["style"] = {"class_type": "LoraLoaderModelOnly", "inputs": {**values, "model": ["2", 0]}}
    after["5"]["inputs"]["model"] = ["style", 0]
    first, second = server.latents(before, "5"), server.latents(after, "5")
    assert_close(first, second)
    assert float((first - server.latents(bare, "5")).abs().max()) > 30 * TOLERANCE * float(first.abs().max())


@pytest.mark.parametrize("rule", ["plain", "corrected", "block"])
def test_noise_rules_from_widgets(rule: str, case: Callable[..., Case], server: Server) -> None:
    pipe, prompt = case("sdxl")
    prompt["5"]["inputs"] |= {"noise_rule": rule, "beta": 0.7}
    assert_close(server.latents(prompt, "5"), expected(with_crossing(pipe, rule=rule, beta=0.7)))


@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_plans_from_widgets(family: str, case: Callable[..., Case], server: Server) -> None:
    pipe, prompt = case(family)
    values: dict[str, Any] = {"upsample": "bicubic", "rule": "corrected", "beta": 0.4, "eta": 0.6}
    pipe = with_crossing(pipe, **values)
    prompt["plan"] = {"class_type": "RMDPlan", "inputs": numbers(pipe.plan)}
    prompt["5"]["inputs"]["plan"] = ["plan", 0]
    assert_close(server.latents(prompt, "5"), expected(pipe))


def numbers(plan: StepPlan) -> dict[str, Any]:
    """Return the widgets of the node "RMD plan" for a plan."""
    last, crossing = plan.stages[-1], plan.crossing
    counts = [sum(step.stage == stage.index for step in plan.steps) for stage in plan.stages]
    return {
        "scales": ", ".join(str(stage.width / last.width) for stage in plan.stages),
        "steps": ", ".join(map(str, counts)), "times": ", ".join(str(step.model_time) for step in plan.steps),
        "noise_rule": crossing.rule, "beta": crossing.beta, "eta": crossing.eta, "upsample": crossing.upsample,
        "original_size": "final", "target_size": "stage",
    }  # fmt: skip


def test_noise_of_comfyui_is_that_of_one_generator(case: Callable[..., Case], server: Server) -> None:
    pipe, prompt = case("sd3", batch=1)
    prompt["5"]["inputs"]["noise"] = "comfyui"
    assert_close(server.latents(prompt, "5"), expected(pipe, batch=1))


def test_a_batch_that_was_split_keeps_its_noise(case: Callable[..., Case], server: Server) -> None:
    for noise in ("comfyui", "rmd", "rmd keyed"):
        _, prompt = case("sd3", batch=3)
        prompt["5"]["inputs"]["noise"] = noise
        whole = server.latents(prompt, "5")
        inputs = {"samples": ["4", 0], "batch_index": 1, "length": 2}
        prompt["part"] = {"class_type": "LatentFromBatch", "inputs": inputs}
        prompt["5"]["inputs"]["latent"] = ["part", 0]
        assert_close(server.latents(prompt, "5"), whole[1:])


def test_keyed_noise(case: Callable[..., Case], server: Server) -> None:
    pipe, prompt = case("wan")
    prompt["5"]["inputs"]["noise"] = "rmd keyed"
    backbone = pipe.backbone
    cond, noise = Cond(prompts(pipe, 2)), CounterNoise(SEED, range(2))
    x0 = sample_latents(backbone, backbone.denoiser, pipe.plan, cond, noise)
    assert_close(server.latents(prompt, "5"), own_latents(pipe, x0))


def test_progress_and_previews_of_all_stages(case: Callable[..., Case], server: Server) -> None:
    _, prompt = case("sdxl", batch=1)
    prompt["5"]["inputs"]["seed"] += 1  # not in the server's cache
    prompt["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "progress"}}
    with connect(f"{server.url.replace('http', 'ws')}/ws?clientId=tests") as socket:
        server.wait(server.submit(prompt, "tests"))
        steps, pictures = list[tuple[int, int]](), 0
        while True:
            message = socket.recv(timeout=10)
            values = json.loads(message) if isinstance(message, str) else {"type": "preview"}
            pictures += values["type"] == "preview"
            if values["type"] == "progress":
                steps.append((values["data"]["value"], values["data"]["max"]))
            if values["type"] == "execution_success":
                break
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)] and pictures > 0


def test_a_long_cascade_can_be_interrupted(case: Callable[..., Case], server: Server) -> None:
    _, prompt = case("sdxl", batch=8)
    times = ", ".join(str(1000 - index) for index in range(900))
    values = {"scales": "1", "steps": "900", "times": times, "noise_rule": "plain", "upsample": "bilinear"}
    sizes = {"original_size": "final", "target_size": "final"}
    prompt["plan"] = {"class_type": "RMDPlan", "inputs": {**values, **sizes, "beta": 0.0, "eta": 1.0}}
    prompt["5"]["inputs"]["plan"] = ["plan", 0]
    prompt["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "never"}}
    with connect(f"{server.url.replace('http', 'ws')}/ws?clientId=tests") as socket:
        number = server.submit(prompt, "tests")
        while '"progress"' not in str(socket.recv(timeout=60)):
            pass
        server.ask("/interrupt", {})
        with pytest.raises(Refused, match=r"execution_interrupted"):
            server.wait(number)


def test_errors_say_what_to_do(case: Callable[..., Case], server: Server) -> None:
    _, prompt = case("sd3")
    case("wan")
    other = json.loads(json.dumps(prompt))
    other["2"]["inputs"]["student"] = "wan-lora"
    with pytest.raises(Refused, match=r"distilled from wan, but the model is SD3"):
        server.latents(other, "5")
    small = json.loads(json.dumps(prompt))
    small["4"]["inputs"] |= {"width": 16, "height": 16}
    with pytest.raises(Refused, match=r"too small for this plan"):
        server.latents(small, "5")
    del prompt["2"]["inputs"]["model"]
    with pytest.raises(Refused, match=r"connect the model from which it was distilled"):
        server.latents(prompt, "5")


@pytest.mark.parametrize("path", ["../../../etc", "/etc", "sd3-lora/../sd3-lora", "sd3-lora/rmd_config.json"])
def test_no_other_folder_is_opened(path: str, case: Callable[..., Case], server: Server) -> None:
    _, prompt = case("sd3")
    prompt["2"]["inputs"]["student"] = path
    with pytest.raises(Refused, match=r"value_not_in_list|not in list"):
        server.latents(prompt, "5")


@pytest.mark.parametrize("name", WORKFLOWS.values())
def test_the_server_knows_every_node_and_input_of_the_examples(name: str, server: Server) -> None:
    known = json.loads(server.ask("/object_info"))
    prompt = json.loads((NODES / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        inputs = known[node["class_type"]]["input"]
        required, optional = inputs.get("required", {}), inputs.get("optional", {})
        assert required.keys() <= node["inputs"].keys() <= required.keys() | optional.keys(), node["class_type"]
        for source, output in (each for each in node["inputs"].values() if isinstance(each, list)):
            assert output < len(known[prompt[source]["class_type"]]["output"])
