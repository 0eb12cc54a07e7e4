"""Keeps other libraries' bars and notices out of what a command prints."""

from __future__ import annotations

import logging
import os
import warnings

_ASKED = {name: name in os.environ for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")}
"""Whether the user has set the verbosity of a library."""


def quiet_libraries() -> None:
    """Silence diffusers and transformers, unless their own environment variables say otherwise.

    Messages that they log as errors are silenced, too: an exception accompanies them, and the command reports it in one
    sentence. Call this before either library is imported: transformers logs during its import. Progress bars of
    downloads from the Hub stay visible.
    """
    for name in _ASKED:
        os.environ.setdefault(name, "critical")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Both libraries read their variable once, and may have been imported before.
    for asked, library in zip(_ASKED.values(), (transformers_logging, diffusers_logging), strict=True):
        if not asked:
            library.set_verbosity(logging.CRITICAL)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
