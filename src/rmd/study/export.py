"""Export of a study: its votes as CSV, and its pairs as tasks of Label Studio."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

import torch

from rmd.core.randomness import generator
from rmd.study.design import tasks_of
from rmd.study.folder import MEDIA, Key, Study
from rmd.study.store import StoredVote

HEADS = ("rater", "task", "kind", "question", "prompt", "left", "right", "choice", "seconds")
LABEL_CONFIG = """<View>
  <Text name="question" value="$question"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="choice" toName="left,right"/>
  <Image name="left" value="$left"/>
  <Image name="right" value="$right"/>
</View>
"""
"""The labelling interface with which Label Studio shows the exported tasks of pictures."""


def votes_csv(study: Study, key: Key, votes: Sequence[StoredVote]) -> str:
    """Return all votes with the names of the systems; the sides of attention checks are `whole` and `spoilt`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADS)
    tasks = {rater: tasks_of(study.design, rater) for rater in {vote.rater for vote in votes}}
    for vote in votes:
        task = tasks[vote.rater][vote.task]
        names = ("whole", "spoilt") if task.kind == "check" else key.systems
        writer.writerow((
            vote.rater, vote.task, task.kind, study.design.questions[task.question].name, task.prompt,
            names[task.left], names[task.right], vote.choice, f"{vote.seconds:.2f}",
        ))  # fmt: skip
    return out.getvalue()


def label_studio(study: Study, *, url: str) -> str:
    """Return the pairs of a study as a JSON list of tasks of Label Studio, with random sides and without the names
    of the systems.

    Args:
        study: the study.
        url: where Label Studio finds the study's folder, such as `/data/local-files/?d=study`.
    """
    design, tasks = study.design, []
    draws = generator(design.seed, "export")
    for question in design.questions:
        for prompt, files in zip(design.prompts, design.files, strict=True):
            for pair in design.pairs:
                sides = torch.randperm(2, generator=draws).tolist()
                left, right = (f"{url}/{MEDIA}/{files[pair[side]]}" for side in sides)
                tasks.append({"data": {"question": question.text, "prompt": prompt, "left": left, "right": right}})
    return json.dumps(tasks, indent=1, ensure_ascii=False) + "\n"
