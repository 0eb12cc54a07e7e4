"""The tab "Compare": models whose samples are judged blind, pair by pair, and what the votes say so far."""

from __future__ import annotations

from typing import Any

import gradio as gr

from rmd.study.design import QUESTIONS
from rmd.study.store import Choice
from rmd.ui.contents import ANSWERS, Contents
from rmd.ui.events import AT_ONCE, ON_DEVICE, shown_errors, whole
from rmd.ui.fragments import note_html, pair_html, results_html
from rmd.ui.models import Size

PROMPTS = 8
"""Number of captions that are proposed for a comparison."""
BUTTONS: tuple[tuple[str, Choice], ...] = (("Left", "left"), ("No difference", "tie"), ("Right", "right"))
EMPTY = (
    "Make the samples of a new comparison, or open an earlier one. Sides are drawn at random, and nobody can tell from "
    "the files whose they are."
)
TOO_FEW = (
    "A comparison needs two models: start the page with two students, as in “rmd ui runs/a/student runs/b/student”, or "
    "with a student whose teacher is there."
)
PROGRESS = gr.Progress()
DONE = "That was the last pair. Thank you!"


class CompareTab:
    """Draws the tab inside the current Blocks, and answers its events."""

    def __init__(self, contents: Contents, page: Any) -> None:
        """Draw the tab.

        Args:
            contents: the contents of the page.
            page: the Blocks, whose loading lists the comparisons that there are by then.
        """
        self._contents, self._models, self._comparisons = contents, contents.models, contents.comparisons
        turn, names = gr.State(("", 0)), self._comparisons.names
        with gr.Row(equal_height=True):
            comparison = gr.Dropdown(
                names, value=None, label="Comparison", info=f"Stored in {self._comparisons.folder}", scale=3,
                min_width=220, elem_id="comparison",
            )  # fmt: skip
            mine = gr.Textbox(
                label="Your code", info="With it you can continue later", max_lines=1, scale=2, min_width=220,
                elem_id="code",
            )  # fmt: skip
        with gr.Accordion("New comparison", open=not names, elem_id="new-comparison") as new:
            fields, make = self._new()
        pair = gr.HTML(note_html(EMPTY), elem_classes="rmd", elem_id="pair")
        with gr.Row(equal_height=True):
            buttons = [
                gr.Button(label, visible=False, min_width=80, elem_id=f"vote-{choice}") for label, choice in BUTTONS
            ]
        tally = gr.Button("Show the results so far", size="sm", visible=False, elem_id="tally")
        results = gr.HTML("", elem_classes="rmd", elem_id="results")
        shown = [turn, mine, pair, *buttons, tally, results]
        if make is not None:
            opened = [new, comparison, *shown]
            make.click(self.make, fields, opened, show_progress="minimal", show_progress_on=[pair], **ON_DEVICE)
        page.load(lambda: gr.Dropdown(self._comparisons.names), None, [comparison], **AT_ONCE)
        comparison.input(self.open, [comparison], shown, **AT_ONCE)
        mine.submit(self.resume, [comparison, mine], shown, **AT_ONCE)
        for button, (_, choice) in zip(buttons, BUTTONS, strict=True):
            chosen = gr.State(choice)
            button.click(self.vote, [comparison, turn, chosen], shown, trigger_mode="once", **AT_ONCE)
        tally.click(self.results, [comparison], [results], **AT_ONCE)

    def make(
        self, systems: list[str], text: str, seed: float, questions: list[str],
        progress: Any = PROGRESS,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Sample the models, build the study, and show its first pair."""
        with shown_errors():
            prompts = [line.strip() for line in text.splitlines() if line.strip()]
            first = next(iter(self._models.students))
            final, frames = self._models.final(first), self._models.students[first].plan.frames
            size = Size(final.height, final.width, frames if self._models.moving(first) else None)
            samplers = {name: self._models.system(name, size) for name in systems}
            name = self._comparisons.make(
                samplers, prompts, seed=whole("seed", seed), questions=questions,
                progress=lambda what, done, total: progress((done, total), desc=what),
            )  # fmt: skip
            return gr.Accordion(open=False), gr.Dropdown(self._comparisons.names, value=name), *self.open(name)

    def open(self, name: str) -> tuple[Any, ...]:
        """Show the first pair of a comparison to a new person."""
        with shown_errors():
            code = str(self._comparisons.desk(name).join()["code"])
        return self.resume(name, code)

    def resume(self, name: str | None, code: str) -> tuple[Any, ...]:
        """Show the next pair of a person who has been here before."""
        with shown_errors():
            if name is None:
                raise gr.Error("Choose a comparison first.", print_exception=False)
            status, task = self._comparisons.desk(name).next(code.strip().lower())
            if status != 200:
                raise gr.Error(task["error"], print_exception=False)
        return self._shown(name, code.strip().lower(), task)

    def vote(self, name: str, turn: tuple[str, int], choice: Choice) -> tuple[Any, ...]:
        """Store a vote for the pair that is shown, and show the next one; `turn` is the code and the pair's number."""
        code, number = turn
        with shown_errors():
            desk = self._comparisons.desk(name)
            status, answer = desk.vote(code, number, choice)
            if status != 200:
                gr.Warning(answer["error"])
                _, answer = desk.next(code)
            return self._shown(name, code, answer)

    def results(self, name: str | None) -> str:
        """Return the tallies of a comparison."""
        with shown_errors():
            return results_html(None if name is None else self._comparisons.results(name))

    def _shown(self, name: str, code: str, task: dict[str, Any]) -> tuple[Any, ...]:
        """Return the turn, the code, the pair, the buttons, and the results once all pairs have been judged."""
        if task["finished"]:
            pair, results = note_html(DONE), self.results(name)
        else:
            question = self._comparisons.desk(name).study.design.questions[task["question"]].text
            pair = pair_html(task, question, f"{ANSWERS}/{name}", small=self._comparisons.is_small(name))
            results = ""
        buttons = [gr.Button(visible=not task["finished"])] * (len(BUTTONS) + 1)
        return (code, task["done"]), code, pair, *buttons, results

    def _new(self) -> tuple[list[Any], Any]:
        """Draw the fields of a new comparison and their button; no button if there are fewer than two models."""
        systems = list(self._models.systems)
        if len(systems) < 2:
            gr.HTML(note_html(TOO_FEW), elem_classes="rmd")
            return [], None
        models = gr.CheckboxGroup(systems, value=systems[:2], label="Models", info="Two or more")
        prompts = gr.Textbox(
            "\n".join(self._models.captions(PROMPTS)), label="Prompts", info="One in each line", lines=6, max_lines=12,
            elem_id="prompts",
        )  # fmt: skip
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
            questions = gr.CheckboxGroup(
                [(question.text, question.name) for question in QUESTIONS], value=[QUESTIONS[0].name],
                label="Questions", min_width=220, scale=3,
            )  # fmt: skip
        return [models, prompts, seed, questions], gr.Button("Make the samples", variant="primary", elem_id="make")
