"""Journals: every worker writes its own, all are read, and lines that were cut off are no values."""

from __future__ import annotations

import json
from pathlib import Path

from rmd.common.workers import ALONE
from rmd.scores.journal import Journal, journal_name, key_of, opened_journal
from rmd.scores.result import Preparation

PREPARATION = Preparation(networks=(), settings={"side": 3})


def test_a_key_depends_on_all_that_decides_a_value() -> None:
    given = (PREPARATION, "torch.float32", "a cat", "ab", ("cd", "ef"))
    key = key_of(*given)
    assert key == key_of(*given[:-1], ("ef", "cd")) and len(key) == 32
    others = (
        Preparation(networks=(), settings={"side": 4}), "torch.float16", "a dog", "xy", ("cd",),
    )  # fmt: skip
    changed = [key_of(*given[:i], other, *given[i + 1 :]) for i, other in enumerate(others)]
    assert len({key, *changed}) == 6


def test_workers_read_each_other_and_write_their_own(tmp_path: Path) -> None:
    with opened_journal(tmp_path, (0, 2)) as first, opened_journal(tmp_path, (1, 2)) as second:
        first.add({"a": 1.0})
        second.add({"b": 2.0, "c": 3.0})
        assert first.values == {"a": 1.0}
        first.read()
        assert first.values == {"a": 1.0, "b": 2.0, "c": 3.0}
    names = {path.name for path in tmp_path.glob("*.jsonl")}
    assert names == {journal_name((0, 2)), journal_name((1, 2))}
    with opened_journal(tmp_path, ALONE) as alone:
        assert alone.values == {"a": 1.0, "b": 2.0, "c": 3.0}
        alone.add({"d": 4.0})
    assert (tmp_path / journal_name(ALONE)).read_text(encoding="utf-8") == '["d", 4.0]\n'


def test_lines_that_are_no_values_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / journal_name(ALONE)
    bad = ["", "{}", "7", '["x"]', '["y", "no"]', '["z", NaN]', '["w", 1, 2]', '["v", null]', '["cut off']
    path.write_text("\n".join(['["a", 1.5]', *bad]), encoding="utf-8")
    journal = Journal(tmp_path, ALONE)
    assert journal.values == {"a": 1.5}
    journal.add({"b": 2.0})
    assert path.read_text(encoding="utf-8").endswith('["cut off\n["b", 2.0]\n')
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n" + json.dumps(["c", 3]).encode())
    assert Journal(tmp_path, ALONE).values == {"a": 1.5, "b": 2.0, "c": 3.0}
