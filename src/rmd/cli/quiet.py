"""Keeps the progress bars and messages of other libraries out of a command's output."""

from __future__ import annotations

import logging
import os
import warnings

_ASKED = {name: name in os.environ for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")}
"""True if the user has set the verbosity of a library."""


def quiet_libraries() -> None:
    """Silence diffusers, transformers and torch's profiler, unless their own environment variables set their verbosity.

    What they log as errors is silenced as well: an exception accompanies it, which the command reports in one sentence.
    Call this before either library is imported, since transformers logs during its import. Progress bars of downloads
    from the Hub stay visible.
    """
    for name in _ASKED:
        os.environ.setdefault(name, "critical")
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # above all its levels; read when torch is imported
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Each library reads its variable only once, and may have been imported already.
    for asked, library in zip(_ASKED.values(), (transformers_logging, diffusers_logging), strict=True):
        if not asked:
            library.set_verbosity(logging.CRITICAL)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
