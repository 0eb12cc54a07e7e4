"""ComfyUI's server, which `make test-comfyui COMFYUI=FOLDER` starts with RMD's nodes and talks to over HTTP."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# What tests share without fixtures, which importlib mode would not find.
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield ComfyUI's server on the CPU, in a folder of its own."""
    from comfyui_server import running

    comfyui = Path(os.environ.get("COMFYUI", ""))
    assert (comfyui / "main.py").is_file(), "there is no ComfyUI: make test-comfyui COMFYUI=FOLDER"
    with running(comfyui.resolve(), tmp_path_factory.mktemp("comfyui")) as started:
        yield started
