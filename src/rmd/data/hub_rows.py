"""Streams prompts from one column of a dataset on the Hugging Face Hub, without running any of its code."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from rmd.common.errors import RMDError, shown
from rmd.data.captions import Column, Keys, Rows
from rmd.models.hub import HUB, no_connection


def read_dataset(source: str, split: str, column: str | None, keys: Keys) -> Rows:
    """Yield the rows of a dataset `hf:OWNER/NAME`.

    Only the caption column is fetched if the dataset's files allow that, so that no picture is decoded for its caption.

    Raises:
        RMDError: the `datasets` library is missing, or the dataset is absent, gated, unreachable or damaged.
    """
    try:
        import datasets
    except ImportError as error:
        raise RMDError(f"{source}: reading the Hub's datasets needs `pip install 'rmd[data]'`") from error
    name = source.removeprefix(HUB)
    if len(name) > 200 or name.count("/") != 1 or not all(name.split("/")) or name.startswith((".", "~")):
        raise RMDError(f"{shown(source)}: a dataset of the Hub is called hf:OWNER/NAME")
    if Path(name).exists():  # the library would load it instead, with any loading script in it
        raise RMDError(f"{source} is also a folder here, which would be read instead: name its files, or go elsewhere")
    found, number = Column(column, keys), 0
    try:
        # Version 3 of the library asks whether to run a dataset's script; later versions run none.
        asks = "trust_remote_code" in signature(datasets.load_dataset).parameters
        options = {"trust_remote_code": False} if asks else {}
        rows: Any = datasets.load_dataset(name, split=split, streaming=True, **options)
        if names := getattr(rows, "column_names", None):
            if lacking := found.find(names):
                raise RMDError(f"{source}{lacking.sentence}")
            rows = rows.select_columns([found.name])
        for row in rows:
            number += 1
            yield f"{source}, row {number}", found.of(row)
    except Exception as error:  # the class of HTTP errors depends on the version of huggingface_hub
        told = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
        if isinstance(error, RMDError) or not (isinstance(error, told) or no_connection(error)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        place = f" behind row {number}" if number else ""
        gated = "accept its terms on its page, and log in with `hf auth login`"
        advice = gated if "gated" in reason else "check name, split and connection"
        raise RMDError(f"cannot read the dataset {name}{place} ({reason}): {advice}") from error
