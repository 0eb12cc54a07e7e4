"""Shows evaluations: tables for terminals and Markdown, and the self-contained page of a demo."""

from __future__ import annotations

from rmd.report.tables import markdown_table, print_rows, print_table
from rmd.report.write import write_report

__all__ = ["markdown_table", "print_rows", "print_table", "write_report"]
