"""The bodies of requests: OpenAI's parameters as far as a student has them, and a seed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rmd.common.typed import Strict
from rmd.core.randomness import MAX_SEED

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class ImageBody(Strict):
    """The body of `POST /v1/images/generations`."""

    prompt: str
    model: str | None = None
    """Name of the model; by default, the first one that makes pictures."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Number of pictures, 1 by default."""
    size: str | None = None
    """WIDTHxHEIGHT, one of the model's sizes; `auto` or nothing for its default."""
    seed: Seed | None = None
    """Seed of the first picture, an extension of OpenAI's interface; each further picture uses the next seed."""
    response_format: Literal["b64_json", "url"] | None = None
    """The picture itself in base64 (the default), or an address from which it can be fetched."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """File format; PNG by default."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of JPEG and WebP files in percent; 100 by default."""
    quality: Literal["auto", "standard"] | None = None
    """A student has one quality only."""
    background: Literal["auto", "opaque"] | None = None
    """Pictures are opaque."""
    stream: Literal[False] | None = None
    """Pictures are not streamed."""
    partial_images: Literal[0] | None = None
    """Pictures are not streamed."""
    user: str | None = None
    """Accepted and ignored."""
    safety_identifier: str | None = None
    """Accepted and ignored."""


class VideoBody(Strict):
    """The body of `POST /v1/videos`."""

    prompt: str
    model: str | None = None
    """Name of the model; by default, the first one that makes videos."""
    size: str | None = None
    """WIDTHxHEIGHT, one of the model's sizes."""
    seconds: str | int | None = None
    """Length of the video, which can only be the model's own."""
    seed: Seed | None = None
    """Seed of the video, an extension of OpenAI's interface."""
    user: str | None = None
    """Accepted and ignored."""


PARAMETERS = tuple({**ImageBody.model_fields, **VideoBody.model_fields})
"""Names of all parameters."""
