"""One call of a student's pipeline: the steps of its plan, with the user's callback after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.plan import Step, StepPlan
from rmd.core.randomness import GeneratorNoise
from rmd.core.sampling import Move, sample_cascade
from rmd.models.cond import Cond
from rmd.models.generate import predictor

StepCallback = Callable[[Any, int, float, dict[str, Tensor]], Mapping[str, Tensor] | None]
"""Called with the pipeline, the step's index from 0, its model time and the tensors that were asked for."""


class _Interrupted(Exception):
    """Ends a call early; its argument is the state of the next step."""


class Call:
    """One call of a pipeline: samples its plan, and calls the user's callback after every step.

    Attributes:
        bar: the progress bar, during the call.
        ends: the clean latents with which every stage ended.
    """

    def __init__(
        self, pipe: Any, plan: StepPlan, cond: Cond, callback: StepCallback | None, names: Sequence[str]
    ) -> None:
        self.pipe, self.plan, self.cond, self.callback, self.names = pipe, plan, cond, callback, names
        self.backbone = pipe.backbone
        self.bar: Any = None
        self.ends: list[Tensor] = []

    def sample(self, noise: GeneratorNoise, start: Tensor | None) -> Tensor:
        """Return clean latents; or, if the call was interrupted, the state of the next step."""
        backbone, plan = self.backbone, self.plan
        x = None if start is None else start.to(noise.device, torch.float32)

        def predict(x_t: Tensor, step: Step) -> tuple[Tensor, Tensor]:
            return predictor(backbone, backbone.denoiser, plan, self.cond)(x_t, step)

        with self.pipe.progress_bar(total=len(plan.steps)) as self.bar:
            try:
                return sample_cascade(
                    predict, plan, backbone.schedule,
                    lambda stage: backbone.latent_shape(len(self.cond), stage.height, stage.width, plan.frames),
                    noise, on_move=self._after, x=x,
                )  # fmt: skip
            except _Interrupted as error:
                state: Tensor = error.args[0]
                return state

    def _after(self, step: Step, x0: Tensor, move: Move) -> Tensor:
        """Return the state of the next step, after the user's callback."""
        self.bar.update()
        state = move(x0)
        if self.callback is not None:
            x0, state = self._call_back(self.callback, step, x0, state, move)
        if self.plan.ends_stage(step):
            self.ends.append(x0)
        if self.pipe.interrupt:
            raise _Interrupted(state)
        return state

    def _call_back(
        self, callback: StepCallback, step: Step, x0: Tensor, state: Tensor, move: Move
    ) -> tuple[Tensor, Tensor]:
        """Call the user's callback, and return the clean prediction and the next state that follow from its answer."""
        names = self.backbone.cond_names
        known = {"x0": x0, "latents": state} | {name: self.cond.tensors[ours] for name, ours in names.items()}
        answer = callback(self.pipe, step.index - 1, step.model_time, {name: known[name] for name in self.names})
        changed = {name: value for name, value in (answer or {}).items() if name in known}
        for name, value in changed.items():
            if value.shape != known[name].shape:
                raise RMDError(
                    f"callback_on_step_end returned {name} of shape {tuple(value.shape)} at step {step.index}, "
                    f"which needs {tuple(known[name].shape)}"
                )
        self.cond = Cond({ours: changed.get(name, self.cond.tensors[ours]) for name, ours in names.items()})
        if changed.get("x0", x0) is not x0:
            x0 = changed["x0"]
            state = move(x0) if changed.get("latents", state) is state else changed["latents"]
            return x0, state
        return x0, changed.get("latents", state)
