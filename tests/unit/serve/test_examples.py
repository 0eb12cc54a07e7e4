"""The examples of many servers: what they name exists, and their parts fit each other and `rmd serve`."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from rmd.cli.app import app
from rmd.serve.limits import Limits

FOLDER = Path(__file__).parents[3] / "examples" / "serve"
COMMAND: Any = typer.main.get_command(app)


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The objects of the Kubernetes example by kind."""
    text = (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")
    found = list(yaml.safe_load_all(text))
    kinds = [each["kind"] for each in found]
    assert kinds == ["Deployment", "Service", "PersistentVolumeClaim", "PodDisruptionBudget"]
    return dict(zip(kinds, found, strict=True))


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


def test_versions_and_names_are_those_of_kubernetes(objects: dict[str, Any]) -> None:
    versions = {"Deployment": "apps/v1", "Service": "v1", "PersistentVolumeClaim": "v1",
                "PodDisruptionBudget": "policy/v1"}  # fmt: skip
    for kind, each in objects.items():
        assert each["apiVersion"] == versions[kind] and each.keys() <= {"apiVersion", "kind", "metadata", "spec"}
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", each["metadata"]["name"])


def test_selectors_find_the_pods(objects: dict[str, Any]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert objects[kind]["spec"]["selector"]["matchLabels"].items() <= labels
    assert objects["Service"]["spec"]["selector"].items() <= labels


def test_the_arguments_are_those_of_the_command(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    entry = re.search(r"^ENTRYPOINT (.*)$", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert entry is not None
    words = [*ast.literal_eval(entry[1]), *container["args"]]
    assert words[:2] == ["rmd", "serve"]
    values = COMMAND.commands["serve"].make_context("rmd serve", words[2:]).params
    assert values["host"] == "0.0.0.0" and values["half"] and values["timeout"] < pod["terminationGracePeriodSeconds"]
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    assert str(values["store"]) in mounted and "/cache" in mounted
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_ports_probes_and_volumes_fit(objects: dict[str, Any], pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == port["name"] and port["containerPort"] == 8000
    for probe, path in (("startupProbe", "/health"), ("livenessProbe", "/health"), ("readinessProbe", "/ready")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
    notes = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/path"] == "/metrics" and notes["prometheus.io/port"] == str(port["containerPort"])
    source = (FOLDER.parents[1] / "src/rmd/serve/app.py").read_text(encoding="utf-8")
    assert all(f'"{path}"' in source for path in ("/health", "/ready", "/metrics"))
    volumes = {each["name"] for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes
    claim = next(each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if each["name"] == "store")
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    (variable,) = container["env"]
    assert variable["name"] == "RMD_API_KEY" and "secretKeyRef" in variable["valueFrom"]


def test_what_the_ray_example_uses_exists() -> None:
    tree = ast.parse((FOLDER / "ray_serve.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rmd."):
            module = import_module(str(node.module))
            assert all(hasattr(module, each.name) for each in node.names)
    used = {call.func.id: call for call in ast.walk(tree) if isinstance(call, ast.Call) and hasattr(call.func, "id")}
    Limits(**{option.arg or "": ast.literal_eval(option.value) for option in used["Limits"].keywords})
