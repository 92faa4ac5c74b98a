"""Reports: self-contained HTML pages of audits, evaluations and unlearning runs."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.report.rendering import render as render
    from lt_mia_jax.report.rendering import render_comparison as render_comparison
    from lt_mia_jax.report.rendering import write_comparison as write_comparison
    from lt_mia_jax.report.rendering import write_picture as write_picture
    from lt_mia_jax.report.rendering import write_report as write_report

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
