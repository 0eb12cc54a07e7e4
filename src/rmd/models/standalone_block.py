"""A student of RMD as a block of modular diffusers, with the cascade of `pipeline.py` beside it.

    blocks = ModularPipelineBlocks.from_pretrained(STUDENT, trust_remote_code=True)
    pipe = blocks.init_pipeline(STUDENT)
    pipe.load_components()
    image = pipe(prompt="a red ball on the beach", output="images")[0]

For a LoRA student, give the teacher to init_pipeline, and student=STUDENT to every call.
"""

import inspect
from typing import Any

from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipelineBlocks, OutputParam

from .standalone import RMDPipeline

_PARTS = ("tokenizer", "text_encoder", "vae", "unet", "transformer", "scheduler")
_INPUTS = ("prompt", "student", "height", "width", "num_frames", "generator", "latents", "num_images_per_prompt")


class RMDBlock(ModularPipelineBlocks):
    """Makes pictures or videos from prompts."""

    @property
    def description(self) -> str:
        """The block in one sentence."""
        return "Samples a distilled student, whose first steps run at a lower resolution."

    @property
    def expected_components(self) -> list[Any]:
        """The parts of the model's own pipeline."""
        given = inspect.signature(RMDPipeline.__init__).parameters.values()
        return [ComponentSpec(each.name, each.annotation) for each in given if each.name.startswith(_PARTS)]

    @property
    def inputs(self) -> list[Any]:
        """The arguments of a call."""
        return [InputParam(name, required=name == "prompt") for name in (*_INPUTS, "output_type")]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The pictures, or the videos."""
        return [OutputParam("images"), OutputParam("videos")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Sample the student that the call names, or else the one in the folder of the parts."""
        block = self.get_block_state(state)
        given = inspect.signature(RMDPipeline.__init__).parameters
        needed = [name for name, each in given.items() if each.default is each.empty and name != "self"]
        names = dict.fromkeys([*(spec.name for spec in self.expected_components), *needed])
        pipe = RMDPipeline(**{name: getattr(components, name, None) for name in names})
        pipe.register_to_config(_name_or_path=components._pretrained_model_name_or_path)
        pipe.load_student(block.student or components._pretrained_model_name_or_path)
        options = {name: getattr(block, name) for name in (*_INPUTS[2:], "output_type")}
        block.images = block.videos = pipe(block.prompt, **{k: v for k, v in options.items() if v is not None})[0]
        self.set_block_state(state, block)
        return components, state
