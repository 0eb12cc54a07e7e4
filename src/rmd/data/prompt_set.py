"""The identity of a set of prompts, by which plans and results of different prompts are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from rmd.common.typed import Strict


class PromptSet(Strict):
    """The prompts that were asked for."""

    name: str
    sha256: str
    """Hash of all prompts, one per line."""
    count: Annotated[int, Field(ge=1)]
    licence: str | None = None
    groups: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Groups of prompts, such as styles, whose means count alike: their numbers of prompts, in the prompts' order."""

    @classmethod
    def of(
        cls, prompts: Sequence[str], name: str, licence: str | None = None, groups: Mapping[str, int] | None = None
    ) -> PromptSet:  # fmt: skip
        """Return the identity of prompts in their order."""
        digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
        return cls(name=name, sha256=digest, count=len(prompts), licence=licence, groups=dict(groups or {}))
