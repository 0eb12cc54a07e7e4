"""The list of packaged recipes: what their files say of themselves, and which one a new recipe begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.recipes import catalog as module
from rmd.recipes.catalog import catalog, closest_recipe
from rmd.recipes.layers import recipe_names
from rmd.recipes.schema import load_recipe


def test_every_recipe_says_what_it_is_for_and_which_card_it_fits() -> None:
    assert [entry.name for entry in catalog()] == recipe_names()
    for entry in catalog():
        assert 10 < len(entry.purpose) < 200 and not entry.purpose.endswith((".", ":")), entry
        assert bool(entry.cards) == (load_recipe(entry.name).train.dtype == "bfloat16"), entry
        load_recipe(entry.name, entry.settings)
    entries = {entry.name: entry for entry in catalog()}
    assert (entries["sdxl"].purpose, entries["sdxl"].card) == ("SDXL, 512 -> 1024, 2+2 steps", "24 GB")
    assert entries["scenes"].card == "no GPU" and entries["scenes"].settings == ()
    assert entries["wan21-14b-full"].card == "8 x 96 GB"
    assert entries["wan21-14b-full"].settings == ("parallel.context_parallel=2", "data.offload=true")
    assert entries["pixart-paper"].purpose.endswith("(Tab. 4 and 6, App. B): 2+2 steps")


def test_a_recipe_that_names_no_card_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("# Mine.\nextends: sdxl\n", encoding="utf-8")
    monkeypatch.setattr(module, "PACKAGED", tmp_path)
    with pytest.raises(RMDError, match=r"^mine\.yaml does not say which card it fits: add a line such as `# Fits one"):
        module._entry("mine")


@pytest.mark.parametrize(
    ("family", "teacher", "mode", "expected"),
    [
        ("sdxl", "some/finetune", None, "sdxl"),
        ("sdxl", "some/finetune", "full", "sdxl-full"),
        ("sdxl", "scenes", None, "scenes"),
        ("pixart", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", None, "pixart-sigma"),
        ("pixart", "some/finetune", "lora", "pixart-lora"),
        ("sd3", "some/finetune", "full", "sd35-full"),
        ("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", None, "wan21-1.3b-3+3"),
        ("wan", "some/finetune", None, "wan21-14b"),
    ],
)
def test_a_new_recipe_begins_with_the_closest(family: str, teacher: str, mode: str | None, expected: str) -> None:
    found = closest_recipe(family, teacher, mode)
    assert found is not None and found.name == expected


def test_a_family_without_a_recipe_has_none() -> None:
    assert closest_recipe("auraflow", "some/model") is None
