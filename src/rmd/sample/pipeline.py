"""RMDPipeline: a distilled student as a pipeline of diffusers.

A student needs only a few steps, at more than one resolution. No pipeline of diffusers changes its resolution while it
samples, so the pipelines here are subclasses of the official ones, whose call runs the student's own plan: encode the
prompts, sample the cascade (Alg. 2), decode. All else is inherited: offloading, tiling, adapters, saving.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from rmd.common.errors import RMDError, integer, one_of
from rmd.core.finite import check_pictures
from rmd.core.plan import StepPlan
from rmd.core.randomness import GeneratorNoise
from rmd.models.adapter import ADAPTER, LORA_NAME, activate, check_active, lora_file, remove_adapter
from rmd.models.base import Backbone
from rmd.models.hub import check_hub_id
from rmd.models.registry import family_of, wrap
from rmd.models.share import required_teacher, upload
from rmd.models.student import (
    StudentConfig,
    apply_student,
    load_student,
    read_student,
    student_folder,
    write_config,
    write_standalone,
)
from rmd.sample.call import Call, StepCallback
from rmd.sample.inputs import OUTPUTS, check_options, check_steps, encoded, generators, warn_of_guidance


@dataclass
class ImageOutput(BaseOutput):
    """The result of a call.

    Attributes:
        images: the pictures, in the form that `output_type` asks for.
        stages: with `return_stages`, what every stage ended with, in the same form.
    """

    images: Any
    stages: Any = None


@dataclass
class VideoOutput(BaseOutput):
    """The result of a call, if the model generates videos.

    Attributes:
        frames: the videos, in the form that `output_type` asks for.
        stages: with `return_stages`, what every stage ended with, in the same form.
    """

    frames: Any
    stages: Any = None


class RMDPipeline(DiffusionPipeline):
    """Generates pictures or videos from prompts with a distilled student.

    Examples:
        >>> from rmd import RMDPipeline
        >>> pipe = RMDPipeline.from_pretrained("runs/demo/student")
        >>> pipe("a big red striped ball on the left, at sunset").images[0].save("ball.png")

    An object of this class is also one of the model's own class, such as StableDiffusionXLPipeline: everything but the
    call is diffusers' own.

    Attributes:
        files: keeps the temporary folder of a student that was made in this process.
    """

    files: object = None
    _students: Mapping[str, StudentConfig] = MappingProxyType({})
    _student: str | None = None
    _interrupt, _num_timesteps = False, 0

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, dtype: torch.dtype | None = None, torch_dtype: torch.dtype | None = None,
        teacher: str | Path | None = None, **options: Any,
    ) -> RMDPipeline:  # fmt: skip
        """Load a student from a folder or from a repository on the Hub.

        Args:
            source: the folder, or OWNER/NAME on the Hub.
            dtype: precision of the weights; float32 by default.
            torch_dtype: the earlier diffusers name of `dtype`.
            teacher: location of a LoRA student's base model, if it has moved since the student was distilled.
            options: further arguments of `DiffusionPipeline.from_pretrained`, such as `quantization_config`,
                `device_map`, `variant` or `revision`.

        Raises:
            RMDError: there is no student, it does not match its teacher, or its weights are not finite.
        """
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise RMDError(f"dtype is {dtype} and torch_dtype is {torch_dtype}, which mean the same: give one of them")
        student = load_student(source, dtype=dtype or torch_dtype or torch.float32, teacher=teacher, **options)
        return cls.of(student.backbone.pipe, student.config)

    @classmethod
    def from_pipe(
        cls, pipeline: DiffusionPipeline, student: str | Path | None = None, *, name: str = ADAPTER, **options: Any
    ) -> RMDPipeline:
        """Return a pipeline for students that shares all parts with a loaded pipeline of their teacher.

        Args:
            pipeline: the teacher's pipeline. A student's adapter is put on its network; adapters that are active there
                stay active, with their weights.
            student: folder of a LoRA student, or its repository on the Hub; `load_student` adds one later.
            name: the student's name on the pipeline.
            options: `torch_dtype`, or parts that take the place of the pipeline's own.

        Raises:
            RMDError: the student is a full one (use `from_pretrained`), does not match the pipeline, or cannot be
                combined with what the pipeline carries: another student of this name, or fused adapters.
        """
        dtype = options.pop("torch_dtype", None)
        unknown = sorted(options.keys() - pipeline.components.keys())
        if unknown:
            raise RMDError(f"from_pipe takes no {unknown[0]}: give parts of the pipeline, such as its scheduler")
        result = cls.of(pipeline)
        result.register_modules(**options)
        if dtype is not None:
            result.to(dtype)
        return result if student is None else result.load_student(student, name)

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, student: StudentConfig | None = None) -> RMDPipeline:
        """Return a pipeline that shares all parts with a loaded one whose network is a student's, or will be one's."""
        result: RMDPipeline = object.__new__(pipeline_class(official_class(pipeline)))
        result.__dict__.update(pipeline.__dict__)
        if student is not None:
            result._students, result._student = {ADAPTER: student}, ADAPTER
        return result

    @property
    def student(self) -> StudentConfig:
        """Contents of the active student's `rmd_config.json`; raises RMDError if there is no student."""
        if self._student is None:
            raise RMDError("this pipeline has no student: put one on it with load_student")
        return self._students[self._student]

    @property
    def plan(self) -> StepPlan:
        """The steps and resolutions that the active student was distilled for."""
        return self.student.plan

    @property
    def backbone(self) -> Backbone:
        """The pipeline as RMD's training and sampling see it."""
        return wrap(self, self.student.conditioning)

    @property
    def guidance_scale(self) -> float:
        """1: guidance is distilled into the student."""
        return 1.0

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """True if the call is to end after the present step."""
        return self._interrupt

    def load_student(self, source: str | Path, name: str = ADAPTER) -> RMDPipeline:
        """Put a LoRA student on the pipeline of its teacher, and make it the active one.

        Args:
            source: folder of the student, or its repository on the Hub.
            name: its name here, by which `set_student` finds it.

        Returns:
            This pipeline.

        Raises:
            RMDError: as for `from_pipe`.
        """
        if not name.isidentifier():
            raise RMDError(f"a student's name is made of letters, digits and underscores, and {name!r} is not")
        full = [each for each, config in self._students.items() if config.mode == "full"]
        if full:
            raise RMDError(f"this pipeline's network is that of a full student ({full[0]}): load another pipeline")
        config = read_student(source)
        apply_student(wrap(self, config.conditioning), config, name, others=self._students)
        self._students, self._student = {**self._students, name: config}, name
        return self

    def set_student(self, name: str = ADAPTER) -> None:
        """Make one of the pipeline's students the active one; style adapters stay as they are.

        Raises:
            RMDError: there is no student of this name.
        """
        one_of("student", name, tuple(self._students))
        if self._students[name].mode == "lora":
            activate(wrap(self), name, others=self._students)
        self._student = name

    def unload_student(self, name: str = ADAPTER) -> None:
        """Take a LoRA student off the pipeline; no student is active then, if it was the active one.

        Raises:
            RMDError: there is no student of this name, or it is a full one, which is the network itself.
        """
        one_of("student", name, tuple(self._students))
        if self._students[name].mode == "full":
            raise RMDError("a full student is the pipeline's own network: load the teacher's pipeline instead")
        remove_adapter(wrap(self), name)
        self._students = {each: config for each, config in self._students.items() if each != name}
        self._student = None if self._student == name else self._student

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True, **options: Any) -> Path:
        """Save the active student so that `from_pretrained` can load it: a whole pipeline, or a LoRA student's adapter.

        Args:
            save_directory: a new folder, or one with a student to replace.
            safe_serialization: always true: weights are written as safetensors.
            options: further arguments of `DiffusionPipeline.save_pretrained`, such as `variant`, for a whole pipeline.

        Returns:
            The folder.

        Raises:
            RMDError: the folder contains something other than a student, or cannot be written.
        """
        if not safe_serialization:
            raise RMDError("students are saved as safetensors only: leave safe_serialization out")
        if options.pop("push_to_hub", False):
            raise RMDError("saving uploads nothing: call push_to_hub of the pipeline, which checks what it uploads")
        student = self.student
        with student_folder(Path(save_directory)) as partial:
            if student.mode == "full":
                super().save_pretrained(partial, **options)
            else:
                partial.mkdir(parents=True)
                shutil.copyfile(lora_file(student.source), partial / LORA_NAME)
            write_config(student, partial)
            write_standalone(self.backbone, student, partial)
        return Path(save_directory)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, token: str | None = None, base_model: str | None = None
    ) -> str:
        """Upload the active student to a repository on the Hub, which is created if necessary.

        Args:
            repo_id: the repository, OWNER/NAME.
            private: whether a new repository is private.
            token: access token; by default, the one that you are logged in with.
            base_model: the teacher's repository on the Hub, OWNER/NAME, if the student's config does not name one.

        Returns:
            Address of the upload.

        Raises:
            RMDError: the teacher is a local folder and `base_model` is not given, or the Hub does not accept the
                upload.
        """
        check_hub_id("the repository", repo_id)
        required_teacher(self.student.teacher, base_model)
        with tempfile.TemporaryDirectory() as folder:
            student = self.save_pretrained(Path(folder) / "student")
            return upload(student, repo_id, private=private, token=token, base_model=base_model)

    @torch.no_grad()
    def __call__(
        self, prompt: str | Sequence[str] | None = None, *, height: int | None = None, width: int | None = None,
        num_frames: int | None = None, num_inference_steps: int | None = None, num_images_per_prompt: int = 1,
        num_videos_per_prompt: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, latents: Tensor | None = None,
        output_type: str = "pil", return_dict: bool = True, return_stages: bool = False,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        negative_prompt: str | Sequence[str] | None = None, guidance_scale: float | None = None, **embeddings: Any,
    ) -> Any:  # fmt: skip
        """Generate pictures or videos.

        Args:
            prompt: one or several prompts; or give their embeddings (`prompt_embeds` and the family's other tensors).
            height, width: size in pixels; the plan's by default. All stages keep their proportion to it.
            num_frames: number of frames of a video; the plan's by default.
            num_inference_steps: the plan's number of steps, or nothing.
            num_images_per_prompt, num_videos_per_prompt: samples per prompt, which are adjacent in the result.
            generator: one for all samples in turn, or one per sample, which makes the samples independent.
            latents: initial noise at the first stage's resolution.
            output_type: "pil", "np" (n, H, W, 3) or "pt" (n, 3, H, W) in [0, 1], with frames after n; or "latent".
            return_dict, return_stages: whether to return a dictionary or a tuple, and the result of every stage.
            callback_on_step_end: called with (self, step index from 0, model time, tensors); what it returns under
                "latents" replaces the state of the next step, under "x0" the step's clean prediction, and under the
                name of an embedding this one. It may set `self._interrupt` to end the call.
            callback_on_step_end_tensor_inputs: names of the tensors that it is called with.
            negative_prompt, guidance_scale: ignored with a warning, because guidance is distilled into the student.
            embeddings: embeddings of the prompts, by diffusers' names.

        Raises:
            RMDError: arguments contradict each other or do not suit the model, or values are not finite.
        """
        plan, backbone = self.plan, self.backbone
        names = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        self._check(backbone, output_type, names, embeddings)
        warn_of_guidance(negative_prompt=negative_prompt, guidance_scale=guidance_scale)
        check_steps(plan, num_inference_steps)
        plan = _resized(plan, backbone, height, width, num_frames)
        each = num_images_per_prompt if num_videos_per_prompt is None else num_videos_per_prompt
        cond = encoded(backbone, prompt, embeddings, each)
        noise = GeneratorNoise(generators(generator, len(cond)), self._execution_device)
        self._interrupt, self._num_timesteps = False, len(plan.steps)
        run = Call(self, plan, cond.to(noise.device), callback_on_step_end, names)
        result = self._decoded(backbone, run.sample(noise, latents), output_type)
        stages = [self._decoded(backbone, end, output_type) for end in run.ends] if return_stages else None
        self.maybe_free_model_hooks()
        output = (VideoOutput if backbone.moving else ImageOutput)(result, stages)
        return output if return_dict else output.to_tuple()

    def _check(
        self, backbone: Backbone, output_type: str, names: Sequence[str], embeddings: Mapping[str, Any]
    ) -> None:  # fmt: skip
        """Check arguments of a call, and that the student's adapter is active."""
        one_of("output_type", output_type, OUTPUTS)
        for name in names:
            one_of("tensor", name, tuple(self._callback_tensor_inputs))
        check_options(embeddings, backbone.cond_names)
        if self.student.mode == "lora":
            check_active(backbone, str(self._student))

    def _decoded(self, backbone: Backbone, x0: Tensor, output_type: str) -> Any:
        """Return latents as pictures or videos of the requested type."""
        if output_type == "latent":
            return x0
        pictures = backbone.decode(x0)
        check_pictures(pictures)
        if pictures.ndim == 5:
            return self.video_processor.postprocess_video(pictures, output_type=output_type)
        return self.image_processor.postprocess(pictures, output_type=output_type)


def official_class(pipeline: DiffusionPipeline) -> Any:
    """Return diffusers' own class of a pipeline."""
    return next(kind for kind in type(pipeline).__mro__ if not issubclass(kind, RMDPipeline))


@cache
def pipeline_class(official: Any) -> type[RMDPipeline]:
    """Return the class of students' pipelines of an official class, of which it is a subclass.

    It has the official class's name, by which diffusers saves and finds pipelines.

    Raises:
        RMDError: no family is registered for the class.
    """
    names = family_of({"_class_name": official.__name__}).cond_names

    @wraps(RMDPipeline.__call__)
    def call(self: RMDPipeline, *arguments: Any, **options: Any) -> Any:
        return RMDPipeline.__call__(self, *arguments, **options)

    call.__dict__["__signature__"] = _with_embeddings(inspect.signature(RMDPipeline.__call__), names)
    own = {
        "__module__": official.__module__, "__doc__": official.__doc__, "__call__": call,
        "_callback_tensor_inputs": ["latents", "x0", *names],
    }  # fmt: skip
    return type(official.__name__, (RMDPipeline, official), own)


def _with_embeddings(signature: inspect.Signature, names: Iterable[str]) -> inspect.Signature:
    """Return the signature of a call with the names of a family's embeddings in place of its last argument."""
    *known, _ = signature.parameters.values()
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    return signature.replace(parameters=[*known, *more])


def _resized(
    plan: StepPlan, backbone: Backbone, height: int | None, width: int | None, frames: int | None
) -> StepPlan:  # fmt: skip
    """Return a plan for the requested size and number of frames."""
    final = plan.stages[-1]
    if frames is not None:
        backbone.check_frames(integer("num_frames", frames))
        plan = replace(plan, frames=frames)
    size = (final.height if height is None else height, final.width if width is None else width)
    return plan if size == (final.height, final.width) else plan.resized(*size, backbone.size_multiple)
