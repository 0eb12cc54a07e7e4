"""Keeps other libraries' bars and notices out of what a command prints."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Silence diffusers and transformers, unless their own environment variables say otherwise.

    To be called before either is imported: transformers has something to say on import already. Bars of downloads
    from the Hub stay.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
