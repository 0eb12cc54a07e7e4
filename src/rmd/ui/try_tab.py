"""The tab "Try": a student beside its teacher, with a stopwatch and a slider over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from rmd.ui.contents import Contents
from rmd.ui.events import AT_ONCE, ON_DEVICE, shown_errors, whole
from rmd.ui.fragments import Side, note_html, side, tried_html
from rmd.ui.models import TEACHER_STEPS, Size
from rmd.ui.trying import MAX_COUNT, check_request, try_student, try_teacher

CAPTIONS = 50
"""Number of captions that are proposed in turn."""
STEP_INFO = "What the student predicts after each of its steps"
EMPTY = "Choose a prompt and press “Generate”. The same prompt, seed and size give the same picture again."


@dataclass(frozen=True)
class _Results:
    """The prompt and the columns that are shown at the moment."""

    prompt: str
    sides: tuple[Side, ...]


class TryTab:
    """Draws the tab inside the current Blocks, and answers its events."""

    def __init__(self, contents: Contents) -> None:
        """Draw the tab."""
        self._contents, self._models = contents, contents.models
        self._captions = self._models.captions(CAPTIONS)
        if not self._models.students:
            gr.HTML(note_html("There is no student: start the page with one, as in “rmd ui runs/demo/student”."),
                    elem_classes="rmd")  # fmt: skip
            return
        with gr.Row(elem_classes="rmd-wide"):
            with gr.Column(scale=2, min_width=280):
                inputs, button = self._inputs()
            with gr.Column(scale=5, min_width=280):
                steps = gr.Slider(1, 2, step=1, value=2, visible=False, label="Step", info=STEP_INFO)
                shown = gr.HTML(note_html(EMPTY), elem_classes="rmd", elem_id="tried")
        results = gr.State(None)
        button.click(
            self.generate, inputs, [results, steps, shown], show_progress="minimal", show_progress_on=[shown],
            **ON_DEVICE,
        )  # fmt: skip
        steps.input(self.at_step, [results, steps], [shown], trigger_mode="always_last", **AT_ONCE)

    def generate(
        self, name: str, prompt: str, seed: float, count: float, height: float, width: float, frames: float,
        beside: bool, teacher_steps: float,
    ) -> Iterator[tuple[Any, Any, str]]:  # fmt: skip
        """Sample the student and then its teacher; yield the state, the slider, and what is shown."""
        with shown_errors():
            prompts, seeds = check_request(prompt, whole("seed", seed), whole("number", count))
            size = Size(whole("height", height), whole("width", width),
                        whole("frames", frames) if self._models.moving(name) else None)  # fmt: skip
            student, shelf = self._models.student(name, size), self._contents.shelf
            tried = try_student(student, prompts, seeds)
            made = _Results(prompt, (side(name, tried, shelf, fps=student.fps),))
            last = len(tried.views)
            slider = gr.Slider(maximum=last, value=last, visible=last > 1)
            yield made, slider, tried_html(prompt, made.sides, last)
            if beside and self._models.teacher is not None:
                teacher = self._models.beside(student, steps=whole("steps of the teacher", teacher_steps))
                other = side(self._models.teacher, try_teacher(teacher, prompts, seeds), shelf, fps=student.fps)
                made = _Results(prompt, (*made.sides, other))
                yield made, gr.skip(), tried_html(prompt, made.sides, last)

    def at_step(self, results: _Results | None, step: int) -> str:
        """Return what is shown after a step."""
        return note_html(EMPTY) if results is None else tried_html(results.prompt, results.sides, int(step))

    def _inputs(self) -> tuple[list[Any], Any]:
        """Draw the fields and the button."""
        models, names = self._models, list(self._models.students)
        final, moving = models.final(names[0]), models.moving(names[0])
        name = gr.Dropdown(names, value=names[0], label="Student", visible=len(names) > 1)
        prompt = gr.Textbox(
            self._captions[0] if self._captions else "", label="Prompt", lines=3, max_lines=8,
            placeholder="What should be in the picture?", elem_id="prompt",
        )  # fmt: skip
        if self._captions:
            turn = gr.State(0)
            another = gr.Button("Another prompt", size="sm")
            another.click(self._next_caption, [turn], [turn, prompt], **AT_ONCE)
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90)
            count = gr.Number(1, label="Number", precision=0, minimum=1, maximum=MAX_COUNT, min_width=90)
        with gr.Row():
            height = gr.Number(final.height, label="Height", precision=0, minimum=1, min_width=90)
            width = gr.Number(final.width, label="Width", precision=0, minimum=1, min_width=90)
        frames = gr.Number(
            models.students[names[0]].plan.frames, label="Frames", precision=0, minimum=1, visible=moving
        )  # fmt: skip
        known = models.teacher is not None
        beside = gr.Checkbox(
            known, label="Beside its teacher", interactive=known, info=None if known else models.missing,
            elem_id="beside",
        )  # fmt: skip
        steps = gr.Number(
            TEACHER_STEPS, label="Steps of the teacher", precision=0, minimum=1, maximum=1000, visible=known
        )  # fmt: skip
        button = gr.Button("Generate", variant="primary", elem_id="generate")
        name.change(self._sized, [name], [height, width, frames], **AT_ONCE)
        return [name, prompt, seed, count, height, width, frames, beside, steps], button

    def _next_caption(self, turn: int) -> tuple[int, str]:
        turn = (turn + 1) % len(self._captions)
        return turn, self._captions[turn]

    def _sized(self, name: str) -> tuple[int, int, Any]:
        """Return the size of another student's samples."""
        final, moving = self._models.final(name), self._models.moving(name)
        return final.height, final.width, gr.Number(self._models.students[name].plan.frames, visible=moving)
