"""From the body of a request to the samples that it asks for, after every check that needs no device."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from rmd.common.errors import one_of
from rmd.core.randomness import check_seeds
from rmd.data.captions import check_prompts
from rmd.serve.batching import Shape
from rmd.serve.bodies import ImageBody, VideoBody
from rmd.serve.engine import Served, choose
from rmd.serve.limits import Limits
from rmd.serve.problems import Problem, refusing, wrong

_RANDOM_SEEDS = 2**31
"""Seeds that the server chooses are below this number, so that people can copy them."""


@dataclass(frozen=True)
class Order:
    """The samples that a request asks for: one prompt, several seeds."""

    student: Served
    shape: Shape
    prompt: str
    seeds: list[int]


def image_order(body: ImageBody, students: Mapping[str, Served], limits: Limits) -> Order:
    """Return the samples that a request for pictures asks for.

    Raises:
        Problem: the request asks for what no model of this server makes, or for too much.
    """
    count = body.n or 1
    if count > limits.max_n:
        raise wrong(f"n is {count}, but a request may ask for at most {limits.max_n} pictures", "n")
    if body.output_compression not in (None, 100) and body.output_format in (None, "png"):
        raise wrong("output_compression is for jpeg and webp: PNG is lossless", "output_compression")
    student = _student(body.model, students, moving=False)
    return Order(student, _shape(student, body.size), _prompt(body.prompt, limits), _seeds(body.seed, count))


def video_order(body: VideoBody, students: Mapping[str, Served], limits: Limits) -> Order:
    """Return the sample that a request for a video asks for.

    Raises:
        Problem: the request asks for what no model of this server makes.
    """
    student = _student(body.model, students, moving=True)
    length = f"{student.seconds:g}"
    if body.seconds is not None and str(body.seconds) not in (length, str(round(student.seconds))):
        raise wrong(f"the model {student.name} makes videos of {length} seconds: leave seconds out", "seconds")
    return Order(student, _shape(student, body.size), _prompt(body.prompt, limits), _seeds(body.seed, 1))


def _student(name: str | None, students: Mapping[str, Served], *, moving: bool) -> Served:
    if name is not None:
        try:
            with refusing("model"):
                one_of("model", name, tuple(students))
        except Problem as problem:
            raise Problem(404, problem.message, "model_not_found", param="model") from None
    with refusing("model"):
        return choose(students, name, moving=moving)


def _shape(student: Served, size: str | None) -> Shape:
    if size in (None, "auto"):
        return student.shapes[0]
    with refusing("size"):
        return student.shapes[student.sizes.index(one_of("size", size, student.sizes))]


def _prompt(prompt: str, limits: Limits) -> str:
    if not prompt.strip():
        raise wrong("the prompt is empty", "prompt")
    if len(prompt) > limits.max_prompt:
        raise wrong(f"the prompt has {len(prompt)} characters, but at most {limits.max_prompt} are allowed", "prompt")
    with refusing("prompt"):
        return check_prompts([prompt])[0]


def _seeds(first: int | None, count: int) -> list[int]:
    start = secrets.randbelow(_RANDOM_SEEDS) if first is None else first
    with refusing("seed"):
        check_seeds(start, count)
    return list(range(start, start + count))
