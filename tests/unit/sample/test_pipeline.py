"""RMDPipeline: it equals the roll-out of training in any batch, loads both kinds of students, and checks arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.callbacks import PipelineCallback
from families import FRAMES, TINY, distilled, make_student
from helpers import PROMPTS
from PIL import Image
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.plan import Step
from rmd.core.randomness import GeneratorNoise
from rmd.core.sampling import run_cascade
from rmd.models.generate import predictor
from rmd.sample.pipeline import RMDPipeline, pipeline_class

families = pytest.mark.parametrize("family", sorted(TINY))
Make = Callable[..., tuple[Path, Path]]
Shared = Callable[..., RMDPipeline]


PLANS: dict[str, dict[str, Any]] = {"2+2": {}, "1+1+2": {"sides": [8, 16, 32], "thresholds": [-5.8, -2.8]}}
plans = pytest.mark.parametrize("plan", sorted(PLANS))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that makes a student, once, and returns its folder and its teacher's."""

    @cache
    def build(family: str, mode: str, plan: str = "2+2") -> tuple[Path, Path]:
        changes, folder = PLANS[plan], tmp_path_factory.mktemp(f"{family}-{mode}")
        if family == "wan" and changes:  # its sides are multiples of 16
            changes = {**changes, "sides": [16, 32, 48], "multiple": 16}
        return make_student(folder, family, mode, plan=changes), folder / "teacher"

    return build


@pytest.fixture(scope="module")
def shared(make: Make) -> Shared:
    """Return a function that loads a student once, for tests that do not change it."""
    return cache(lambda *which: quiet(make(*which)[0]))


def seeds(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def quiet(source: Path, **options: Any) -> RMDPipeline:
    pipe = RMDPipeline.from_pretrained(source, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@plans
@families
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_pipeline_is_the_training_roll_out(family: str, mode: str, plan: str, shared: Shared) -> None:
    backbone = TINY[family]()
    roles = distilled(backbone, mode)
    pipe = shared(family, mode, plan)
    assert (
        "+".join(str(sum(step.stage == stage.index for step in pipe.plan.steps)) for stage in pipe.plan.stages) == plan
    )
    with torch.no_grad(), roles.use("student") as network:
        expected = run_cascade(
            predictor(backbone, network, pipe.plan, backbone.encode(PROMPTS)),
            pipe.plan,
            backbone.schedule,
            lambda stage: backbone.latent_shape(4, stage.height, stage.width, pipe.plan.frames),
            GeneratorNoise(seeds(4)),
        )
    result = pipe(PROMPTS, generator=seeds(4), output_type="latent")[0]
    scale = float(expected.abs().max())
    torch.testing.assert_close(result / scale, expected / scale, rtol=0, atol=1e-5)


@plans
@families
def test_a_picture_does_not_depend_on_its_neighbours(family: str, plan: str, shared: Shared) -> None:
    pipe = shared(family, "full", plan)
    together = pipe(PROMPTS, generator=seeds(4), output_type="latent")[0]
    again = pipe(PROMPTS, generator=seeds(4), output_type="latent")[0]
    assert torch.equal(together, again)
    alone = pipe(PROMPTS[2], generator=seeds(1, first=2), output_type="latent")[0]
    scale = float(together.abs().max())
    torch.testing.assert_close(alone[0] / scale, together[2] / scale, rtol=0, atol=1e-5)


@plans
@families
@pytest.mark.parametrize("size", [(24, 40), (48, 16)])
def test_the_size_is_the_requested_one(family: str, size: tuple[int, int], plan: str, shared: Shared) -> None:
    pipe = shared(family, "full", plan)
    frames = ()
    if pipe.backbone.moving:  # its sides are multiples of 16
        size, frames = ((size[0] + 8) // 16 * 32, (size[1] + 8) // 16 * 32), (FRAMES,)
    images = pipe(PROMPTS[:1], height=size[0], width=size[1], generator=seeds(1), output_type="pt")[0]
    assert images.shape == (1, *frames, 3, *size)
    assert float(images.min()) >= 0 and float(images.max()) <= 1


def test_a_lora_student_can_be_added_to_a_loaded_pipeline(make: Make) -> None:
    student, _ = make("sdxl", "lora")
    expected = quiet(student)(PROMPTS, generator=seeds(4), output_type="latent").images
    stock = TINY["sdxl"]().pipe
    result = RMDPipeline.from_pipe(stock, student)(PROMPTS, generator=seeds(4), output_type="latent").images
    torch.testing.assert_close(result, expected)
    with pytest.raises(RMDError, match=r"is of the family sdxl, but the pipeline is of sd3$"):
        RMDPipeline.from_pipe(TINY["sd3"]().pipe, student)


def test_a_full_student_cannot_be_added_to_a_pipeline(make: Make) -> None:
    student, _ = make("sdxl", "full")
    with pytest.raises(RMDError, match="is a full student, not an adapter: load it with RMDPipeline"):
        RMDPipeline.from_pipe(TINY["sdxl"]().pipe, student)


def test_the_teacher_of_a_lora_student_may_have_moved(tmp_path: Path) -> None:
    student, teacher = make_student(tmp_path, "sd3", "lora"), tmp_path / "teacher"
    moved = teacher.rename(tmp_path / "moved")
    with pytest.raises(RMDError, match="there is no folder "):
        RMDPipeline.from_pretrained(student)
    assert quiet(student, teacher=moved)(PROMPTS[:1], generator=seeds(1), output_type="pt").images.shape[0] == 1


def test_output_types(shared: Shared) -> None:
    pipe = shared("sdxl", "full")
    pictures = pipe(PROMPTS[:2], generator=seeds(2)).images
    assert [type(picture) for picture in pictures] == [Image.Image] * 2
    assert pictures[0].size == (32, 32)
    array = pipe(PROMPTS[:2], generator=seeds(2), output_type="np").images
    assert isinstance(array, np.ndarray) and array.shape == (2, 32, 32, 3)
    with pytest.raises(RMDError, match=r"^unknown output_type 'jpg': use one of pil, np, pt, latent$"):
        pipe(PROMPTS[0], output_type="jpg")


def test_stages_are_returned_on_request(shared: Shared) -> None:
    pipe = shared("sdxl", "full")
    output = pipe(PROMPTS[:2], generator=seeds(2), output_type="pt", return_stages=True)
    assert [tuple(stage.shape) for stage in output.stages] == [(2, 3, 16, 16), (2, 3, 32, 32)]
    assert torch.equal(output.stages[-1], output.images)
    assert pipe(PROMPTS[0], generator=seeds(1)).stages is None


def test_several_pictures_of_a_prompt_are_adjacent(shared: Shared) -> None:
    pipe = shared("sdxl", "full")
    result = pipe(PROMPTS[:2], num_images_per_prompt=2, generator=seeds(4), output_type="latent").images
    expected = pipe([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], generator=seeds(4), output_type="latent").images
    torch.testing.assert_close(result, expected)
    with pytest.raises(RMDError, match=r"^num_images_per_prompt must be at least 1, got 0$"):
        pipe(PROMPTS[0], num_images_per_prompt=0)


@families
def test_embeddings_replace_prompts(family: str, shared: Shared) -> None:
    pipe = shared(family, "full")
    with torch.no_grad():
        cond = pipe.backbone.encode(PROMPTS[:2])
    given: dict[str, Any] = {name: cond.tensors[ours] for name, ours in pipe.backbone.cond_names.items()}
    result = pipe(**given, generator=seeds(2), output_type="latent")[0]
    assert torch.equal(result, pipe(PROMPTS[:2], generator=seeds(2), output_type="latent")[0])
    with pytest.raises(RMDError, match=r"^give a prompt or its embeddings, not both$"):
        pipe(PROMPTS[:2], **given)
    last = list(given)[-1]
    del given[last]
    wanted = f"all of prompt_embeds, {last}" if given else last
    with pytest.raises(RMDError, match=f"^give a prompt, or {wanted}: {last} is missing$"):
        pipe(**given)


def test_generators_and_initial_noise(shared: Shared) -> None:
    pipe = shared("sdxl", "full")
    one = [pipe(PROMPTS[:2], generator=seeds(1)[0], output_type="latent").images for _ in range(2)]
    assert torch.equal(*one)
    shape = pipe.backbone.latent_shape(2, 16, 16)
    start = torch.cat([torch.randn((1, *shape[1:]), generator=g) for g in seeds(2)])
    rest = seeds(2)
    for g in rest:
        torch.randn((1, *shape[1:]), generator=g)
    result = pipe(PROMPTS[:2], latents=start, generator=rest, output_type="latent").images
    assert torch.equal(result, pipe(PROMPTS[:2], generator=seeds(2), output_type="latent").images)
    unseeded = [pipe(PROMPTS[:1], output_type="latent").images for _ in range(2)]
    assert not torch.equal(*unseeded)
    with pytest.raises(RMDError, match=r"^2 pictures need one generator or 2 of them, got 3$"):
        pipe(PROMPTS[:2], generator=seeds(3))
    with pytest.raises(RMDError, match=r"^the start noise has shape"):
        pipe(PROMPTS[:2], latents=torch.zeros(2, 4, 3, 3))


def test_a_callback_is_called_at_every_step_and_can_replace_x0(shared: Shared) -> None:
    pipe = shared("sdxl", "full")
    seen: list[tuple[int, float, set[str]]] = []

    def look(it: RMDPipeline, index: int, time: float, tensors: dict[str, Tensor]) -> None:
        assert it is pipe
        seen.append((index, time, set(tensors)))

    asked = ("x0", "latents", "prompt_embeds")
    call = partial(pipe, PROMPTS[:1], output_type="latent", callback_on_step_end_tensor_inputs=asked)
    plain = call(generator=seeds(1), callback_on_step_end=look).images
    steps: tuple[Step, ...] = pipe.plan.steps
    assert seen == [(i, step.model_time, set(asked)) for i, step in enumerate(steps)]
    assert plain.any()

    def changing(name: str, at: int, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what comes out if the callback changes a tensor after one step."""

        def change(it: RMDPipeline, index: int, time: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value(tensors[name])} if index == at else {}

        result: Tensor = call(generator=seeds(1), callback_on_step_end=change).images
        return result

    last = len(steps) - 1
    for name in ("x0", "latents"):
        assert not changing(name, last, torch.zeros_like).any()
        assert torch.equal(changing(name, 0, torch.clone), plain)
        assert not torch.equal(changing(name, 0, torch.zeros_like), plain)
    assert torch.equal(changing("prompt_embeds", last, torch.zeros_like), plain)  # no step follows
    assert not torch.equal(changing("prompt_embeds", 0, torch.zeros_like), plain)
    crossing = next(step for step in steps if pipe.plan.ends_stage(step)).index - 1
    x0, state = after_step(pipe, crossing)
    assert state.shape[-1] == 2 * x0.shape[-1]


def after_step(pipe: RMDPipeline, step: int) -> tuple[Tensor, Tensor]:
    """Return x0 and the state after a step, counted from 0."""
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(it: RMDPipeline, index: int, time: float, tensors: dict[str, Tensor]) -> None:
        kept.append((tensors["x0"], tensors["latents"]))

    names = ["x0", "latents"]
    pipe(PROMPTS[:1], generator=seeds(1), callback_on_step_end=keep, callback_on_step_end_tensor_inputs=names)
    return kept[step]


@families
def test_a_call_can_be_interrupted(family: str, shared: Shared) -> None:
    pipe = shared(family, "full")
    for stop in range(len(pipe.plan.steps)):

        def end(it: Any, index: int, time: float, tensors: dict[str, Tensor], stop: int = stop) -> None:
            assert index <= stop
            it._interrupt = index == stop

        result = pipe(PROMPTS[:1], generator=seeds(1), output_type="latent", callback_on_step_end=end)[0]
        assert torch.equal(result, after_step(pipe, stop)[1])
    assert torch.isfinite(pipe(PROMPTS[:1], generator=seeds(1), output_type="latent")[0]).all()


@families
def test_it_is_a_pipeline_of_diffusers(family: str, shared: Shared, tmp_path: Path) -> None:
    pipe = shared(family, "full")
    official = type(TINY[family]().pipe)
    assert isinstance(pipe, RMDPipeline) and isinstance(pipe, official)
    assert type(pipe).__name__ == official.__name__ and pipeline_class(official) is type(pipe)
    assert set(pipe.components) == set(TINY[family]().pipe.components)
    again = type(pipe)(**pipe.components)  # as diffusers makes pipelines of their parts
    with pytest.raises(RMDError, match=r"^this pipeline has no student: put one on it with load_student$"):
        again("a")
    stock = DiffusionPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "saved"))
    assert type(stock) is official
    result = pipe(PROMPTS[0], generator=seeds(1), output_type="np", return_dict=False, num_inference_steps=4)
    assert isinstance(result, tuple) and len(result) == 1
    output = pipe(PROMPTS[0], generator=seeds(1), output_type="np")
    assert np.array_equal(output[0], result[0]) and list(output) == ["frames" if family == "wan" else "images"]
    assert (pipe.guidance_scale, pipe.num_timesteps, pipe.interrupt) == (1.0, 4, False)
    assert len(pipe(PROMPTS[0], generator=seeds(2), num_videos_per_prompt=2, output_type="np")[0]) == 2


def test_a_second_pipeline_shares_the_parts_of_the_first(make: Make) -> None:
    student, _ = make("sdxl", "lora")
    stock = TINY["sdxl"]().pipe
    scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    pipe = RMDPipeline.from_pipe(stock, scheduler=scheduler)
    assert pipe.unet is stock.unet and pipe.scheduler is scheduler and stock.scheduler is not scheduler
    assert type(stock) is StableDiffusionXLPipeline
    assert RMDPipeline.from_pipe(pipe, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    stock.to(torch.float32)
    assert pipe.load_student(student) is pipe and pipe.student.source == str(student)
    with pytest.raises(RMDError, match=r"^from_pipe takes no device: give parts of the pipeline, such as"):
        RMDPipeline.from_pipe(stock, device="cpu")


def test_a_full_student_stays(shared: Shared, make: Make) -> None:
    pipe = shared("sdxl", "full")
    pipe.set_student()
    with pytest.raises(RMDError, match=r"^a full student is the pipeline's own network: "):
        pipe.unload_student()
    with pytest.raises(RMDError, match=r"^this pipeline's network is that of a full student \(rmd\): "):
        pipe.load_student(make("sdxl", "lora")[0], "second")


def test_guidance_is_ignored_with_a_warning(shared: Shared) -> None:
    pipe = shared("sdxl", "full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = pipe(PROMPTS[:1], generator=seeds(1), output_type="latent", guidance_scale=1.0).images
    with pytest.warns(UserWarning, match="^negative_prompt and guidance_scale changed nothing"):
        result = pipe(
            PROMPTS[:1], generator=seeds(1), output_type="latent", guidance_scale=7.5, negative_prompt="bad"
        ).images
    assert torch.equal(result, expected)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_saved_pipeline_loads_as_the_same_student(mode: str, make: Make, tmp_path: Path) -> None:
    pipe = quiet(make("pixart", mode)[0])
    pipe.save_pretrained(tmp_path / "copy")
    copy = quiet(tmp_path / "copy")
    assert copy.plan == pipe.plan
    result = copy(PROMPTS[:2], generator=seeds(2), output_type="latent").images
    assert torch.equal(result, pipe(PROMPTS[:2], generator=seeds(2), output_type="latent").images)


def test_variants_are_saved_and_loaded(shared: Shared, tmp_path: Path) -> None:
    pipe = shared("sdxl", "full")
    folder = pipe.save_pretrained(tmp_path / "half", variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    copy = quiet(folder, variant="fp16")
    result = copy(PROMPTS[:1], generator=seeds(1), output_type="latent")[0]
    assert torch.equal(result, pipe(PROMPTS[:1], generator=seeds(1), output_type="latent")[0])
    with pytest.raises(RMDError, match=r"^students are saved as safetensors only: leave safe_serialization out$"):
        pipe.save_pretrained(tmp_path / "other", safe_serialization=False)
    with pytest.raises(RMDError, match=r"^saving uploads nothing: call push_to_hub of the pipeline, which checks"):
        pipe.save_pretrained(tmp_path / "other", push_to_hub=True)
    assert not (tmp_path / "other").exists()


def test_a_callback_of_diffusers_names_its_own_tensors(shared: Shared) -> None:
    class Blank(PipelineCallback):
        tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]

        def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: Any) -> Any:
            assert set(callback_kwargs) == set(self.tensor_inputs)
            return {"latents": torch.zeros_like(callback_kwargs["latents"])} if step_index == 3 else callback_kwargs

    pipe = shared("sdxl", "full")
    blank = Blank(cutoff_step_ratio=1.0)
    assert not pipe(PROMPTS[:1], generator=seeds(1), output_type="latent", callback_on_step_end=blank).images.any()


def test_videos_are_lists_of_frames_of_any_valid_length(shared: Shared) -> None:
    pipe = shared("wan", "lora")
    output = pipe(PROMPTS[:2], generator=seeds(2), return_stages=True)
    assert output.frames is output[0] and [len(video) for video in output.frames] == [FRAMES] * 2
    assert {type(frame) for video in output.frames for frame in video} == {Image.Image}
    assert [(len(stage[1]), stage[1][0].size) for stage in output.stages] == [(FRAMES, (16, 16)), (FRAMES, (32, 32))]
    array = pipe(PROMPTS[:1], generator=seeds(1), num_frames=3, output_type="np").frames
    assert array.shape == (1, 3, 32, 32, 3)
    with pytest.raises(RMDError, match=r"^wan makes clips of 1 \+ 2 n frames, not of 4: use 3 or 5$"):
        pipe(PROMPTS[:1], num_frames=4)
    with pytest.raises(RMDError, match=r"^wan makes clips of 1 \+ 2 n frames, not of 0: use 1 or 3$"):
        pipe(PROMPTS[:1], num_frames=0)
    still = shared("sdxl", "full")
    with pytest.raises(RMDError, match=r"^sdxl makes single pictures, not 5 frames"):
        still(PROMPTS[:1], num_frames=5)


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"holds no student: it has no rmd_config\.json$"):
        RMDPipeline.from_pretrained(tmp_path)


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


OF_THE_PIPELINE: dict[str, Callable[[Any], object]] = {
    "vae slicing": lambda pipe: pipe.vae.enable_slicing(),
    "vae tiling": lambda pipe: pipe.vae.enable_tiling(),
    "attention backend": lambda pipe: pipe.unet.set_attention_backend("_native_math"),
    "compile": lambda pipe: denoiser(pipe).compile(backend="eager"),
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
}


SET = [pytest.param("sdxl", what, marks=[pytest.mark.slow] if what == "compile" else []) for what in OF_THE_PIPELINE]


@pytest.mark.parametrize(("family", "what"), [*SET, ("pixart", "compile")])  # a transformer takes a third of the time
def test_settings_of_the_official_pipeline_stay_in_effect(family: str, what: str, make: Make) -> None:
    pipe = quiet(make(family, "full")[0])
    expected = pipe(PROMPTS, generator=seeds(4), output_type="pt").images
    OF_THE_PIPELINE[what](pipe)
    torch.testing.assert_close(pipe(PROMPTS, generator=seeds(4), output_type="pt").images, expected, rtol=0, atol=1e-4)


def test_a_base_model_in_half_precision_works(make: Make) -> None:
    student, teacher = make("sdxl", "lora")
    pipe = quiet(student, dtype=torch.bfloat16, teacher=teacher)
    assert pipe.unet.dtype == torch.bfloat16
    expected = quiet(student)(PROMPTS, generator=seeds(4), output_type="latent").images
    result = pipe(PROMPTS, generator=seeds(4), output_type="latent").images
    assert result.dtype == torch.float32
    assert float((result - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < 0.1


@families
def test_layerwise_casting_leaves_samples_nearly_as_they_are(family: str, make: Make) -> None:
    student, _ = make(family, "full")
    pipe = quiet(student, dtype=torch.bfloat16)
    expected = pipe(PROMPTS, generator=seeds(4), output_type="latent")[0]
    denoiser(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    result = pipe(PROMPTS, generator=seeds(4), output_type="latent")[0]
    assert torch.float8_e4m3fn in {parameter.dtype for parameter in denoiser(pipe).parameters()}
    assert 0 < float((result - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < 0.3


def test_torch_dtype_is_an_alias_of_dtype(make: Make) -> None:
    student, _ = make("sdxl", "lora")
    assert quiet(student, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    assert quiet(student, torch_dtype=torch.bfloat16, dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    with pytest.raises(RMDError, match=r"^dtype is torch\.float32 and torch_dtype is torch\.bfloat16, which mean"):
        quiet(student, dtype=torch.float32, torch_dtype=torch.bfloat16)


@families
def test_values_that_are_not_finite_are_errors(family: str, make: Make) -> None:
    pipe = quiet(make(family, "full")[0])
    first = next(iter(denoiser(pipe).parameters()))
    before = first.detach().clone()
    first.data[0] = float("nan")
    with pytest.raises(RMDError, match=r"^step 1 of 4 \(16x16, time 1000\) returned values that are not finite: "):
        pipe(PROMPTS[:2], generator=seeds(2))
    first.data.copy_(before)
    for parameter in pipe.vae.decoder.conv_out.parameters():
        parameter.data.fill_(float("inf"))
    with pytest.raises(RMDError, match=r"^the VAE returned values that are not finite: "):
        pipe(PROMPTS[:1], generator=seeds(1))
    assert pipe(PROMPTS[:1], generator=seeds(1), output_type="latent")[0].isfinite().all()


def test_invalid_arguments_are_refused(shared: Shared) -> None:
    pipe = shared("sdxl", "full")
    given = {name: pipe.backbone.encode(PROMPTS[:2]).tensors[ours] for name, ours in pipe.backbone.cond_names.items()}
    for arguments, sentence in (
        ({"prompt": []}, r"^there is no prompt: give at least one$"),
        ({"prompt": 5}, r"^a prompt must be text, but prompt 1 is 5$"),
        ({"prompt": ["a", None]}, r"^a prompt must be text, but prompt 2 is None$"),
        ({"prompt": "a\ud83d"}, r"cannot be used: the caption contains half of a character"),
        ({"prompt": "a\0"}, r"cannot be used: the caption contains the control character U.0000"),
        ({"prompt": "a" * 10**6}, r"cannot be used: the caption has 1000000 characters, but at most 100000"),
        ({"prompt": "a", "num_images_per_prompt": 10**9}, r"^1000000000 pictures are too many for one call: "),
        ({"prompt": "a", "num_videos_per_prompt": 0}, r"^num_images_per_prompt must be at least 1, got 0$"),
        ({"prompt": "a", "num_images_per_prompt": 1.5}, r"^num_images_per_prompt must be an integer, got 1\.5$"),
        ({"prompt": "a", "height": 0}, r"^the final size is 0x32: sides must be positive$"),
        ({"prompt": "a", "width": 10**6}, r"^the final size has a side of 1000000 pixels: use at most 16384$"),
        ({"prompt": "a", "height": 36.0}, r"^a height must be an integer, got 36\.0$"),
        ({**given, "prompt_embeds": given["prompt_embeds"][:1]}, r"different numbers of prompts: prompt_embeds 1, "),
        ({"prompt": "a", "output_type": None}, r"^unknown output_type None: use one of pil"),
        (
            {"prompt": "a", "callback_on_step_end": lambda *_: {"x0": torch.zeros(1)}},
            r"^callback_on_step_end returned x0 of shape \(1,\) at step 1, which needs \(1, 4, 8, 8\)$",
        ),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["noise"]}, r"^unknown tensor 'noise': use one of"),
        ({"prompt": "a", "num_inference_steps": 25}, r"^this student has 4 steps, not 25: leave num_inf"),
        ({"prompt": "a", "clip_skip": 1}, r"^a student takes no clip_skip: leave it out \(embeddings"),
    ):  # fmt: skip
        with pytest.raises(RMDError, match=sentence):
            pipe(**arguments)
