"""A prompt source that fills a template with every combination of words.

data:
  prompts: "template:a {colour} {thing} on the beach"
  options: {words: {colour: [red, blue], thing: [ball, kite, boat]}}
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import product

from pydantic import Field

from rmd import RMDError
from rmd.common.typed import Strict
from rmd.data.prompts import PromptSource


class TemplatePrompts(PromptSource):
    """All fillings of the template that follows `template:`."""

    class Options(Strict):
        """The keys of `data.options`."""

        words: dict[str, list[str]] = Field(min_length=1)
        """The words for each place of the template."""

    options: Options

    def captions(self) -> Iterator[object]:
        """Yield every filling, the last place varying fastest."""
        places = [name for _, name, _, _ in string.Formatter().parse(self.argument) if name]
        missing = [name for name in places if name not in self.options.words]
        if missing or not places:
            lacks = f"has no words for {missing[0]}" if missing else "needs a place such as {colour} in its template"
            raise RMDError(f"data.prompts: the template {lacks}: set it in data.options.words")
        for words in product(*(self.options.words[name] for name in places)):
            yield self.argument.format(**dict(zip(places, words, strict=True)))
