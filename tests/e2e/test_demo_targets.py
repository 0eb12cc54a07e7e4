"""The demo with its default settings meets its targets, in ten minutes on two cores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = ("denoiser speed-up over", "sampler time outside")  # depend on the machine, so they are not tested


@pytest.mark.slow
def test_every_target_of_quality_is_reached(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rmd", "demo", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    quality = {check["name"]: check for check in report["checks"] if not check["name"].startswith(SPEED)}
    assert len(quality) == 5
    assert not [check for check in quality.values() if not check["passed"]]
    assert report["quick"] is False
    assert report["peak_memory_gb"] <= 4
