"""What people look at: tables, figures and the HTML report."""

from reprune.report.html import check_installed, write_report
from reprune.report.inspection import Inspection
from reprune.report.table import render_structure, render_table

__all__ = ["Inspection", "check_installed", "render_structure", "render_table", "write_report"]
