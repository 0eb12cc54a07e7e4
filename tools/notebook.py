"""Runs examples/quickstart.ipynb from beginning to end, and keeps its outputs: `make notebook`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def main() -> None:
    """Execute the notebook in an empty folder; write it back only if no cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}}, record_timing=False
        )
        client.execute()
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
