"""The nodes: "RMD student", "RMD plan" and "RMD cascade sampler"."""

from __future__ import annotations

from typing import Any

from .noise import SEEDS, SOURCES
from .plan import RULES, TOLD, UPSAMPLES, Crossing, Plan, plan_of_numbers

PLAN = "RMD_PLAN"
FROM_PLAN = "from plan"
BETA = ("FLOAT", {"default": 0.2, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": "Weight of the predicted noise."})


class Student:
    """Puts a student on its teacher's model, and gives the plan for which it was distilled."""

    CATEGORY, FUNCTION = "RMD", "load"
    DESCRIPTION = "Puts a student on the model from which it was distilled. A full student needs no model."
    RETURN_TYPES, RETURN_NAMES = ("MODEL", PLAN), ("model", "plan")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs in ComfyUI's form."""
        from . import students

        tip = "A folder in models/rmd_students, or a LoRA in models/loras with its NAME.rmd_config.json."
        return {
            "required": {"student": (students.names(), {"tooltip": tip})},
            "optional": {"model": ("MODEL", {"tooltip": "The teacher's model; a full student replaces it."})},
        }

    @classmethod
    def IS_CHANGED(cls, student: str, model: Any = None) -> str:
        """Return a text that changes when a file of the student does."""
        from . import students

        return students.find(student).fingerprint

    def load(self, student: str, model: Any = None) -> tuple[Any, Plan]:
        """Return the student's model and its plan."""
        from . import students

        found = students.find(student)
        return students.load(found, model), found.plan


class PlanOfNumbers:
    """Makes a plan of a few numbers, for a LoRA without a config or for experiments."""

    CATEGORY, FUNCTION = "RMD", "make"
    DESCRIPTION = "A plan without a file. `rmd plan RECIPE` prints the numbers; times are its column `model time`."
    RETURN_TYPES, RETURN_NAMES = (PLAN,), ("plan",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs in ComfyUI's form."""
        rule = "How predicted and fresh noise are mixed between stages."
        scales = "Sides of the stages, relative to the final size."
        target = "SDXL only: the target size that the model is told."
        eta = "Weight of the predicted noise within a stage; the rest is fresh."
        upsamples = [name for name in UPSAMPLES if name != "taps"]
        return {
            "required": {
                "scales": ("STRING", {"default": "0.5, 1", "tooltip": scales}),
                "steps": ("STRING", {"default": "2, 2", "tooltip": "Number of steps of each stage."}),
                "times": ("STRING", {"default": "1000, 773.8, 745, 372.5", "tooltip": "Times of all steps."}),
                "noise_rule": (list(RULES), {"default": "block", "tooltip": rule}),
                "beta": BETA,
                "eta": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": eta}),
                "upsample": (upsamples, {"tooltip": "Interpolation to the next stage."}),
                "original_size": (list(TOLD), {"tooltip": "SDXL only: the original size that the model is told."}),
                "target_size": (
                    list(TOLD),
                    {"default": "stage", "tooltip": target},
                ),
            }
        }

    def make(
        self, scales: str, steps: str, times: str, noise_rule: str, beta: float, eta: float, upsample: str,
        original_size: str, target_size: str,
    ) -> tuple[Plan]:  # fmt: skip
        """Return the plan."""
        crossing = Crossing(upsample=upsample, rule=noise_rule, beta=beta, eta=eta)
        return (plan_of_numbers(scales, steps, times, crossing, original_size, target_size),)


class CascadeSampler:
    """Samples a cascade: first steps at low resolutions, last ones at the full one."""

    CATEGORY, FUNCTION = "RMD", "sample"
    DESCRIPTION = "Samples by a student's plan, without guidance, which is distilled into the student."
    RETURN_TYPES, RETURN_NAMES = ("LATENT",), ("latent",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs in ComfyUI's form."""
        noise = (
            "comfyui: one generator for the batch, as in KSampler. rmd: one for each picture (seed, seed + 1, ...), as "
            "in `rmd generate`. rmd keyed: that of RMD's evaluations."
        )
        rule = "How predicted and fresh noise are mixed between stages; beta counts only if this is not from the plan."
        return {
            "required": {
                "model": ("MODEL",),
                "plan": (PLAN,),
                "positive": ("CONDITIONING",),
                "latent": ("LATENT", {"tooltip": "Empty, with the size of the finished pictures."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": SEEDS - 1, "control_after_generate": True}),
                "noise": (list(SOURCES), {"tooltip": noise}),
                "noise_rule": ([FROM_PLAN, *RULES], {"tooltip": rule}),
                "beta": BETA,
            }
        }

    def sample(
        self, model: Any, plan: Plan, positive: Any, latent: dict[str, Any], seed: int, noise: str, noise_rule: str,
        beta: float,
    ) -> tuple[dict[str, Any]]:  # fmt: skip
        """Return the latents."""
        from . import sampling

        chosen = plan if noise_rule == FROM_PLAN else plan.with_noise(noise_rule, beta)
        return (sampling.sample(model, chosen, positive, latent, noise, seed),)


NODE_CLASS_MAPPINGS = {"RMDStudent": Student, "RMDPlan": PlanOfNumbers, "RMDCascadeSampler": CascadeSampler}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RMDStudent": "RMD student", "RMDPlan": "RMD plan", "RMDCascadeSampler": "RMD cascade sampler"
}  # fmt: skip
