"""The report of a distillation: its data, its tables and its page."""

from __future__ import annotations

from rmd.evaluate.rows import Check, Motion, Report, Row
from rmd.report.tables import markdown_table, print_rows, print_table
from rmd.report.write import write_report

__all__ = ["Check", "Motion", "Report", "Row", "markdown_table", "print_rows", "print_table", "write_report"]
