"""Reports: self-contained HTML pages of audits, evaluations and unlearning runs."""

from lt_mia_jax.report.render import (
    render,
    render_comparison,
    write_comparison,
    write_picture,
    write_report,
)

__all__ = [
    "render",
    "render_comparison",
    "write_comparison",
    "write_picture",
    "write_report",
]
