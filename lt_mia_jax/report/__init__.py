"""Audit and evaluation reports: one self-contained HTML page from run directories."""

from lt_mia_jax.report.render import render, write_report

__all__ = ["render", "write_report"]
