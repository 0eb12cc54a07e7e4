"""Fuzzes the command line: `python tests/fuzz/run.py --count 1000 --seed 1 [--only plan/] [--replay FILE]`.

Prints how the cases ended, by verb and kind of input, and saves those that ended badly for `--replay`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

# After the folders of PYTHONPATH, so that this script can also test the sources and tests of another version.
sys.path.append(str(Path(__file__).resolve().parents[1]))
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="Agg", COLUMNS="200")

from fuzz.campaign import GOOD, OUTCOMES, Result, cases, run_cases, undamaged
from fuzz.world import in_child


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases")
    parser.add_argument("--only", default="", help="part of `verb/kind of input` to run, such as plan/ or recipe")
    parser.add_argument("--replay", type=Path, help="run the cases in a file of failures, and print the output of each")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures.json"), help="file to save failures to")
    parser.add_argument("--valid", action="store_true", help="run the valid inputs, which must all be accepted")
    asked = parser.parse_args()
    if asked.valid:
        wanted = [case for case in undamaged() if asked.only in case]
    elif asked.replay is not None:
        wanted = [entry["case"] for entry in json.loads(asked.replay.read_text(encoding="utf-8"))]
        wanted = [case for case in wanted if asked.only in case]
    else:
        wanted = cases(asked.count, asked.seed, asked.only)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="rmd-fuzz-world-") as folder:
        world = in_child(Path(folder) / "world")
        began = time.monotonic()
        for number, result in enumerate(run_cases(wanted, world), start=1):
            results.append(result)
            if result.outcome not in GOOD or asked.replay is not None or asked.valid:
                print(f"[{number}] {result.outcome}: {result.case}: {result.said.strip()[-400:]!r}", flush=True)
    print(f"\n{len(results)} cases in {time.monotonic() - began:.0f} s")
    print(table(results))
    bad = [result for result in results if result.outcome not in GOOD]
    if bad and asked.replay is None:
        asked.save.write_text(json.dumps([asdict(result) for result in bad], indent=1), encoding="utf-8")
        print(f"{len(bad)} ended badly; run them again with --replay {asked.save}")
    return bool(bad)


def table(results: list[Result]) -> str:
    """Return counts of outcomes by verb and kind of input, and in total."""
    rows: dict[str, Counter[str]] = {}
    for result in results:
        rows.setdefault("/".join(result.case.split("/")[:2]), Counter())[result.outcome] += 1
    total = Counter(result.outcome for result in results)
    columns = [outcome for outcome in OUTCOMES if total[outcome]]
    width = max(map(len, rows), default=0) + 2
    lines = [" " * width + "  ".join(columns)]
    for name, counts in [*sorted(rows.items()), ("all", total)]:
        lines.append(name.ljust(width) + "  ".join(str(counts[c] or "").rjust(len(c)) for c in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
