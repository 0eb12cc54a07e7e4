"""Runs `rmd compare` with a table of two small rows and a budget of seconds: tiny_compare.py FOLDER."""

from __future__ import annotations

import sys

from rmd.cli.app import main
from rmd.compare.cells import BUDGETS, Budget
from rmd.compare.settings import UNDISTILLED, Setting, Table
from rmd.compare.tables import TABLES

if __name__ == "__main__":
    BUDGETS["small"] = Budget("small", 40, (0,), 6)
    row = Setting("rmd", "ours", changes=("train.batch_size=2", "method.guidance=2.0"))
    TABLES["components"] = Table("components", "Tiny", "none", "Does it run?", (row, UNDISTILLED), against="rmd")
    sys.exit(main(["compare", "components", "--budget", "small", "--out", sys.argv[1]]))
