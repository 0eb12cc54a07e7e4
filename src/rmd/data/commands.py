"""Removes the commands of an image service from its users' prompts: `--ar 3:2 --v 5 --no text, watermark`."""

from __future__ import annotations

import re

_URL = r"<?https?://\S+"
_START = r"(?:^|(?<=[\s,.]))"
_HYPHENS = rf"{_START}--"
_DASH = rf"{_START}(?:--|[—–―])"  # phones turn two hyphens into one long dash
_LAST = r"(?=\s*(?:$|--\w|[—–―]\w))"  # only commands follow
_NUMBERS = (
    "(?:ar|aspect|v|version|niji|s|stylize|c|chaos|w|weird|q|quality|seed|sameseed|stop|iw|sw|cw|ow|sv|r|repeat|h|height|"
    "motion|bs|exp)"
)
_FLAGS = (
    "(?:niji|tile|video|hd|test|testp|creative|upbeta|uplight|upanime|upexp|beta|turbo|fast|relax|draft|raw|public|"
    "stealth|loop)"
)
_COMMANDS = re.compile(
    "|".join(
        (
            rf"{_DASH}no\b.*?(?=\s*(?:$|--\w|\s[—–―]\w))",  # all words up to the next command
            rf"{_DASH}(?:sref|cref|oref|dref|p|profile|personalize)\b(?:[\s,]+(?:{_URL}|random\b\S*|\S*\d\S*))*",
            rf"(?:{_DASH}|(?<=[^\s-])--){_NUMBERS}\s*[\d.]\S*",
            rf"{_DASH}(?:style|mode|end)\s+[^\s—–―-]\S*",
            rf"{_HYPHENS}{_FLAGS}\b|{_DASH}{_FLAGS}\b{_LAST}",
            rf"{_HYPHENS}\w[\w-]*(?:\s+[^\s—–―-]\S*)?",  # any other command: a word and its value
            _URL,
        )
    ),
    re.IGNORECASE | re.DOTALL,
)
_WEIGHT = re.compile(r"::\s*(-?\d*\.?\d+)?")


def strip_commands(text: str) -> str:
    """Return a prompt of an image service without its commands and image addresses.

    Weights are removed as well (`cat::2 dog` becomes "cat, dog"), together with the parts of negative weight, which say
    what the picture must not show.
    """
    plain = " ".join(_COMMANDS.sub(" ", text).split())
    return _without_weights(plain) if "::" in plain else plain


def _without_weights(text: str) -> str:
    pieces = _WEIGHT.split(text)  # part, weight, part, weight, ..., last part
    parts = [
        part.strip(" ,")
        for part, weight in zip(pieces[::2], [*pieces[1::2], None], strict=True)
        if weight is None or not weight.startswith("-")
    ]
    return ", ".join(part for part in parts if part)
