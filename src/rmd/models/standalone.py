"""Runs a student of RMD with diffusers alone: its first steps at a lower resolution, its last ones at the full one.

    pipe = DiffusionPipeline.from_pretrained(STUDENT, custom_pipeline=STUDENT, trust_remote_code=True)
    image = pipe("a red ball on the beach").images[0]

For a LoRA student, load its teacher's pipeline in this way, and then call pipe.load_student(STUDENT). The class is
diffusers' own pipeline of the model. During a call, another scheduler takes the place of the official one: it follows
the plan in `rmd_config.json`, and changes the size of the latents between two steps where the plan says so. Source:
"RMD: Cross-Resolution Distribution Matching Distillation", Sec. 3 (Alg. 2, Eq. 4 and 10).
"""

import inspect
import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
from diffusers import StableDiffusionXLPipeline as Base  # the model's own pipeline
from huggingface_hub import hf_hub_download
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor


class RMDPipeline(Base):
    """The model's own pipeline, which samples by a student's plan."""

    scheduler: Any
    student: Any = None  # the content of its `rmd_config.json`

    def load_student(self, source: str) -> "RMDPipeline":
        """Put the LoRA student in a folder or a repository onto this pipeline, and return the pipeline."""
        student = json.loads(_file(source, "rmd_config.json").read_text(encoding="utf-8"))
        if student["mode"] == "lora":
            _adapt(*self._network(), _file(source, "pytorch_lora_weights.safetensors"))
        elif str(source) != self.config.get("_name_or_path"):
            raise ValueError(f"{source} is a whole pipeline: load it by from_pretrained")
        self.student = student
        return self

    @torch.no_grad()
    def __call__(
        self, prompt: Any = None, *, height: int | None = None, width: int | None = None, generator: Any = None,
        num_inference_steps: int | None = None, guidance_scale: float = 1.0, latents: Tensor | None = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Generate pictures or videos; arguments and result are those of the model's own pipeline.

        Size and number of steps may be left out, and guidance must be: it is distilled into the student. The latents,
        if given, are the initial noise at the first stage's resolution.
        """
        student = self.student or self.load_student(self.config._name_or_path).student
        plan, accepted = student["plan"], inspect.signature(super().__call__).parameters
        if num_inference_steps not in (None, len(plan["steps"])):
            raise ValueError(f"this student has {len(plan['steps'])} steps, not {num_inference_steps}: leave them out")
        if guidance_scale > 1 or options.get("negative_prompt"):
            raise ValueError("guidance is distilled into the student: leave guidance_scale and negative_prompt out")
        usual = {"use_resolution_binning": False, "clean_caption": False, "num_frames": plan["frames"]}
        if "max_sequence_length" in accepted:
            tokenizer = self.components.get("tokenizer_3", self.components["tokenizer"])
            lengths = (accepted["max_sequence_length"].default, getattr(tokenizer, "model_max_length", math.inf))
            usual["max_sequence_length"] = int(min(lengths))
        options = {name: value for name, value in usual.items() if name in accepted} | options
        final, given = plan["stages"][-1], options.get("prompt_embeds") if prompt is None else prompt
        size = (height or final["height"], width or final["width"])
        each = options.get("num_images_per_prompt", options.get("num_videos_per_prompt", 1))
        cascade = self._cascade(student, *size, options.get("num_frames", 1))
        cascade.draw_from(generator, each * (1 if isinstance(given, str) else len(given or ())), self._execution_device)
        official, self.scheduler = self.scheduler, cascade
        hook = self._network()[1].register_forward_pre_hook(cascade.tell, with_kwargs=True)
        try:
            return super().__call__(
                prompt, height=size[0], width=size[1], num_inference_steps=len(plan["steps"]), guidance_scale=1.0,
                generator=generator, latents=cascade.noise(0) if latents is None else latents, **options,
            )  # fmt: skip
        finally:
            hook.remove()
            self.scheduler = official

    def _network(self) -> tuple[str, Any]:
        """Return the name of the denoising network, and the network."""
        name = "unet" if "unet" in self.components else "transformer"
        return name, getattr(self, name)

    def _cascade(self, student: dict[str, Any], height: int, width: int, frames: int) -> "Cascade":
        """Return the scheduler of a plan for a size in pixels."""
        plan, (name, network) = student["plan"], self._network()
        factor = getattr(self, "vae_scale_factor_spatial", None) or self.vae_scale_factor
        if name == "unet":
            multiple = factor * 2 ** (len(network.config.down_block_types) - 1)
        else:
            patch = network.config.patch_size
            multiple = factor * patch if isinstance(patch, int) else math.lcm(16, factor * patch[1])
        sides = [(stage["height"], stage["width"]) for stage in plan["stages"]]

        def sized(old: Any) -> list[int]:
            sizes = zip(old, (height, width), sides[-1], strict=True)
            return [max(1, round((a * b / c) / multiple + 1e-9)) * multiple for a, b, c in sizes]

        sizes = [sized(side) for side in sides]
        time = getattr(self, "vae_scale_factor_temporal", None)
        depth = ((frames - 1) // time + 1,) if time else ()
        shapes = [(network.config.in_channels, *depth, *(side // factor for side in size)) for size in sizes]
        return Cascade(self.scheduler.config, student, sizes, sized(plan["match_side"] or sides[-1]), shapes)


class Cascade(SchedulerMixin, ConfigMixin):
    """The scheduler of one call. Latents stay in float32 between the steps."""

    config_name = "scheduler_config.json"
    order, init_noise_sigma = 1, 1.0

    def __init__(self, official: Any, student: Any, sizes: list[Any], told: list[int], shapes: list[Any]) -> None:
        """Read the official scheduler's noise levels, and the times of a student's plan."""
        self.register_to_config(num_train_timesteps=official.num_train_timesteps)
        self.rules, self.crossing = student["conditioning"], student["plan"]["crossing"]
        if self.rules["pos_rescale"]:
            raise ValueError("this student rescales positions, for which RMD itself is needed: pip install rmd")
        self.sizes, self.told, self.shapes, self.steps, self.index = sizes, told, shapes, student["plan"]["steps"], 0
        self.flow = official.get("beta_schedule") is None or bool(official.get("use_flow_sigmas"))
        self.prediction = "flow" if self.flow else official.get("prediction_type", "epsilon")
        table = None if self.flow else DDPMScheduler.from_config(official).alphas_cumprod.cpu()
        self.levels = [_level(step["model_time"], table) for step in self.steps]
        self.sigmas = torch.tensor([sigma for _, sigma in self.levels])
        scale, first = official.num_train_timesteps / 1000, 0.0 if self.flow else 1.0
        self.timesteps = torch.tensor([max(step["model_time"] * scale - first, 0.0) for step in self.steps])

    def draw_from(self, generator: Any, count: int, device: torch.device) -> None:
        """Take the noise of `count` samples from one generator, or from one each."""
        if generator is None:
            (generator := torch.Generator()).seed()
        self.device = device
        self.generators = list(generator) if isinstance(generator, list | tuple) else [generator] * count

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Do nothing: a call begins at the first step."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:
        """Begin a call; the steps are those of the plan."""
        self.index, self.timesteps = 0, self.timesteps.to(device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the latents as they are."""
        return sample

    def tell(self, network: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, Any]:
        """Give the network latents of its own type, and the sizes with which the student was distilled."""
        dtype = next(value for value in network.parameters() if value.is_floating_point()).dtype
        arguments = tuple(value.to(dtype) if place == 0 else value for place, value in enumerate(arguments))
        if "hidden_states" in given:
            given["hidden_states"] = given["hidden_states"].to(dtype)
        size = {"final": self.told, "stage": self.sizes[self.steps[self.index]["stage"] - 1]}
        original, target = size[self.rules["original"]], size[self.rules["target"]]
        ratio, added = (target[0] / target[1],), dict(given.get("added_cond_kwargs") or {})
        for name, told in ("time_ids", (*original, 0, 0, *target)), ("resolution", target), ("aspect_ratio", ratio):
            if added.get(name) is not None:
                added[name] = added[name].new_tensor(told).expand_as(added[name])
        return arguments, given | ({"added_cond_kwargs": added} if added else {})

    def step(self, output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        """Return the latents of the next step, or after the last step the clean ones."""
        (alpha, sigma), x, out = self.levels[self.index], sample.float(), output.float()
        clean, noise = {
            "epsilon": lambda: ((x - sigma * out) / alpha, out),
            "v_prediction": lambda: (alpha * x - sigma * out, alpha * out + sigma * x),
            "sample": lambda: (out, (x - alpha * out) / sigma),
            "flow": lambda: (x - sigma * out, x + alpha * out),
        }[self.prediction]()
        self.index += 1
        if self.index == len(self.steps):
            return (clean.to(output.dtype),)
        before, after = (self.steps[index]["stage"] - 1 for index in (self.index - 1, self.index))
        if before != after:
            clean, noise = self._cross(clean, noise, self.noise(after))
        elif self.crossing["within"] == "fresh":
            noise = self.noise(after)
        elif (eta := self.crossing["eta"]) < 1:
            noise = eta * noise + math.sqrt(1 - eta**2) * self.noise(after)
        alpha, sigma = self.levels[self.index]
        return (alpha * clean + sigma * noise,)

    def _cross(self, clean: Tensor, noise: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal and noise at a higher resolution (Eq. 4 and 10)."""
        rule, sides = self.crossing, list(zip(clean.shape[-2:], fresh.shape[-2:], strict=True))
        rows, columns = (_enlarging(*side, rule["upsample"], rule["taps"]).to(clean) for side in sides)
        beta, rest = rule["beta"], math.sqrt(1 - rule["beta"] ** 2)
        if rule["rule"] == "block":
            spread = (_enlarging(a, b, "dct" if b % a else "nearest", []) * math.sqrt(a / b) for a, b in sides)
            p, q = (each.to(clean) for each in spread)
            mixed = fresh + p @ (beta * noise + (rest - 1) * (p.T @ fresh @ q)) @ q.T
        else:
            mixed = beta * (rows @ noise @ columns.T) + rest * fresh
        if rule["rule"] == "corrected":
            energy = rows.double().square().sum(1)[:, None] * columns.double().square().sum(1)
            mixed = mixed / (beta**2 * energy + 1 - beta**2).sqrt().to(mixed)
        return rows @ clean @ columns.T, mixed

    def noise(self, stage: int) -> Tensor:
        """Return fresh noise of a stage, counted from 0, one sample after another from its generator."""
        rows = [torch.randn((1, *self.shapes[stage]), generator=g, device=g.device) for g in self.generators]
        return torch.cat([row.to(self.device) for row in rows])


def _level(time: float, table: Tensor | None) -> tuple[float, float]:
    """Return the weights of signal and noise at a time in 0 to 1000; without a table, those of a flow."""
    if table is None:
        return 1 - time / 1000, time / 1000
    place = min(max(time * len(table) / 1000, 1.0), float(len(table)))
    if place == round(place):
        entry = table[round(place) - 1].float()
        return float(entry.sqrt()), float((1 - entry).sqrt())
    below, alphas = min(math.floor(place), len(table) - 1), table.double().sqrt()
    alpha = float(torch.lerp(alphas[below - 1], alphas[below], place - below))
    return alpha, math.sqrt((1 - alpha) * (1 + alpha))


def _enlarging(low: int, high: int, mode: str, taps: list[float]) -> Tensor:
    """Return the matrix (high, low) that enlarges one dimension."""
    matrix, ratio, resize = torch.zeros(high, low, dtype=torch.float64), high // low, torch.nn.functional.interpolate
    if mode == "dct" or low == high:
        k, longer, shorter = (torch.arange(n, dtype=torch.float64) for n in (low, high, low))
        a, b = (torch.cos(math.pi / len(n) * k[:, None] * (n + 0.5)) for n in (longer, shorter))
        return a.T @ (b * torch.where(k > 0, 2.0, 1.0)[:, None]) / low
    if mode != "taps":
        unit = torch.eye(low, dtype=torch.float64).view(low, 1, low, 1)
        return resize(unit, size=(high, 1), mode=mode.replace("nearest", "nearest-exact")).view(low, high).T
    for pixel in range(-len(taps), low + len(taps)):  # beyond its edges, a latent continues with its outermost values
        for row, tap in enumerate(taps, start=pixel * ratio - (len(taps) - ratio) // 2):
            if 0 <= row < high:
                matrix[row, min(max(pixel, 0), low - 1)] += tap
    return matrix


def _file(source: str, name: str) -> Path:
    """Return a file of a folder, or of a repository on the Hub."""
    return Path(source) / name if Path(source).is_dir() else Path(hf_hub_download(source, name))


def _adapt(part: str, network: Any, path: Path) -> None:
    """Put an adapter onto a network."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {name.removeprefix(f"{part}."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings: Any = {name.rpartition(".")[2]: value for name, value in header.items()}
    inject_adapter_in_model(LoraConfig(**settings), network, adapter_name="rmd")
    outcome: Any = set_peft_model_state_dict(network, tensors, adapter_name="rmd")
    if outcome.unexpected_keys:
        raise ValueError(f"{path} belongs to another model: it has {outcome.unexpected_keys[0]}")
