"""VBench's environment: every version is exact, and the ways to build it agree."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[3] / "integrations" / "vbench"


def pins() -> dict[str, str]:
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(sign for _, sign, _ in found)
    return {name: version for name, _, version in found}


def test_versions_are_those_that_vbench_asks_for() -> None:
    found = pins()
    assert found["vbench"] == "0.1.5" and found["transformers"] == "4.33.2" and found["numpy"].startswith("1.")
    assert found["torch"] == "2.1.2" and int(found["setuptools"].split(".")[0]) < 70
    assert found["timm"] == "1.0.12" and len(found) > 100


def test_conda_and_docker_build_the_same() -> None:
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in ("Dockerfile", "environment.yml")]
    assert len({tuple(re.findall(r"[0-9a-f]{40}", text)) for text in texts}) == 1
    assert all("requirements.txt" in text and "PIP_CONSTRAINT" in text for text in texts)
    environment = yaml.safe_load(texts[1])
    assert "python=3.10" in environment["dependencies"]
    assert f"setuptools={pins()['setuptools']}" in environment["dependencies"]
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.txt"]}


def test_the_script_for_docker_runs_the_image_that_is_built() -> None:
    script = FOLDER / "python-in-docker"
    assert script.stat().st_mode & 0o111
    assert "rmd-vbench python" in script.read_text(encoding="utf-8")
    assert "docker build -t rmd-vbench" in (FOLDER / "Dockerfile").read_text(encoding="utf-8")
