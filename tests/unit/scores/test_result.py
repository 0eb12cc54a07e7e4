"""Results: intervals over prompts, paired comparisons, protocols that must agree, and files that belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmd.common.errors import RMDError
from rmd.data.prompt_set import PromptSet
from rmd.scores.result import (
    RESULT,
    TABLE,
    Making,
    Network,
    Preparation,
    Protocol,
    Result,
    Table,
    bootstrap,
    compare,
    differences,
    read_result,
    summarise,
    write_result,
)


def table_of(values: np.ndarray, each: int = 2) -> Table:
    """Return a table of values (prompts, each)."""
    prompts = np.repeat(np.arange(len(values)), each)
    return Table(prompts, np.arange(prompts.size), [f"{i}.png" for i in range(prompts.size)], {"clip": values.ravel()})


def result_of(table: Table, model: str = "ours", **changes: Any) -> Result:
    protocol = Protocol(
        prompts=PromptSet(name="mine.txt", sha256="ab", count=len(np.unique(table.prompt))), seed=0, each=2, width=64,
        height=64, image_format="png", dtype="float32",
        metrics={"clip": Preparation(networks=(Network(name="openai/clip", files={"model.safetensors": "cd"}),))},
    )  # fmt: skip
    score = summarise(table, "clip", expected=table.prompt.size)
    return Result(
        making=Making(model=model), protocol=protocol.model_copy(update=changes), scores={"clip": score}, versions={}
    )


def test_the_interval_is_that_of_prompts_and_covers() -> None:
    """Pictures of a prompt are nearly alike, so two of them are worth hardly more than one."""
    covered, widths = 0, []
    for seed in range(100):
        random = np.random.default_rng(seed)
        values = random.normal(size=(40, 1)) + 0.05 * random.normal(size=(40, 2))
        low, high = bootstrap(values.ravel(), np.repeat(np.arange(40), 2), draws=400, seed=seed)
        covered += low <= 0 <= high
        widths.append(high - low)
    assert covered >= 88
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.1)


def test_means_and_what_is_missing() -> None:
    values = np.asarray([[1.0, 3.0], [5.0, np.nan]])
    score = summarise(table_of(values), "clip", expected=4)
    assert (score.mean, score.count, score.missing) == (3.0, 3, 1)
    with pytest.raises(RMDError, match=r"^no picture has a value of clip$"):
        summarise(table_of(np.full((2, 2), np.nan)), "clip", expected=4)


def test_a_paired_difference_is_far_surer_than_two_means() -> None:
    random = np.random.default_rng(0)
    prompts = random.normal(size=(60, 1)) + 0.1 * random.normal(size=(60, 2))
    ours, theirs = table_of(prompts + 0.1), table_of(prompts + 0.02 * random.normal(size=(60, 2)))
    found = compare((result_of(ours), ours), (result_of(theirs, "theirs"), theirs))["clip"]
    assert found.difference == pytest.approx(0.1, abs=0.02) and found.low > 0.09 and found.high < 0.11
    assert found.count == 60 and found.missing == 0 and found.ahead > 0.95
    alone = summarise(ours, "clip", expected=120)
    assert alone.high - alone.low > 10 * (found.high - found.low)


def test_only_common_pictures_are_compared() -> None:
    a = np.asarray([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]])
    b = np.asarray([[0.0, np.nan], [1.0, 1.0], [5.0, 6.0]])
    ours, theirs = table_of(a), table_of(b)
    found = compare((result_of(ours), ours), (result_of(theirs), theirs))["clip"]
    assert (found.ours, found.theirs, found.missing, found.count) == (3.75, 3.0, 2, 3)
    nothing = table_of(np.full((3, 2), np.nan))
    with pytest.raises(RMDError, match=r"^these results have no picture with a value of clip in common$"):
        compare((result_of(ours), ours), (result_of(ours), nothing))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"seed": 1}, "seed is 0 in ours's and 1 in theirs's"),
        ({"image_format": "jpg"}, "image_format is 'png' in ours's and 'jpg' in theirs's"),
        ({"prompts": PromptSet(name="mine.txt", sha256="xy", count=2)}, "prompts.sha256 is 'ab' in ours's and 'xy' in"),
        ({"metrics": {}}, "metrics.clip is {"),
    ],
)
def test_other_protocols_are_not_compared(changes: dict[str, Any], where: str) -> None:
    table = table_of(np.ones((2, 2)))
    with pytest.raises(RMDError) as error:
        compare((result_of(table), table), (result_of(table, "theirs", **changes), table))
    assert str(error.value).startswith(f"these results cannot be compared: {where}") and "\n" not in str(error.value)


def test_every_difference_has_its_path() -> None:
    found = list(differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}, "e": 5}))
    assert found == [("b.c", 2, 4), ("b.d", 3, None), ("e", None, 5)]


def test_a_result_and_its_table_survive_and_belong_together(tmp_path: Path) -> None:
    table = table_of(np.asarray([[1.0, np.nan], [3.0, 4.0]]))
    result = result_of(table)
    write_result(result, table, tmp_path)
    again, values = read_result(tmp_path)
    assert again == result and list(values.file) == list(table.file)
    np.testing.assert_array_equal(values.values["clip"], table.values["clip"])
    write_result(result, table_of(np.ones((2, 2))), tmp_path)
    with pytest.raises(RMDError, match=r"scores\.parquet does not belong to .*scores\.json: score the pictures again$"):
        read_result(tmp_path)
    (tmp_path / TABLE).write_bytes(b"PAR1 but not a table")
    with pytest.raises(RMDError, match=r"scores\.parquet is damaged: score the pictures again$"):
        read_result(tmp_path)
    (tmp_path / RESULT).unlink()
    with pytest.raises(RMDError, match=r" has no scores\.json: score its pictures first$"):
        read_result(tmp_path)
