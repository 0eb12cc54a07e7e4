"""Keeps other libraries' bars and notices out of what a command prints."""

from __future__ import annotations

import logging
import os
import warnings

_ASKED = {name: name in os.environ for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")}
"""Whether the user has said how much a library is to tell."""


def quiet_libraries() -> None:
    """Silence diffusers and transformers, unless their own environment variables say otherwise.

    What they log as errors is silent, too: they raise an exception as well, of which a command makes one sentence.
    To be called before either is imported: transformers has something to say on import already. Bars of downloads
    from the Hub stay.
    """
    for name in _ASKED:
        os.environ.setdefault(name, "critical")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Both read their variable once: here they may have been imported before.
    for asked, library in zip(_ASKED.values(), (transformers_logging, diffusers_logging), strict=True):
        if not asked:
            library.set_verbosity(logging.CRITICAL)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
