"""The main job as a library: was each text in the fine-tuning data?

The package is itself the function: `lt_mia_jax.audit(pair, texts)` is
`lt_mia_jax.audit.audit(pair, texts)`.
"""

import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.audit.judge import audit as audit
    from lt_mia_jax.audit.judge import evaluate_stores as evaluate_stores
    from lt_mia_jax.audit.results import AuditResult as AuditResult
    from lt_mia_jax.audit.results import write_result as write_result
    from lt_mia_jax.audit.scoring import ModelPair as ModelPair
    from lt_mia_jax.audit.scoring import load_pair as load_pair
    from lt_mia_jax.audit.served import StatisticsPair as StatisticsPair
    from lt_mia_jax.audit.served import load_statistics as load_statistics

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> "AuditResult":
        """As `audit.judge.audit`."""
        return self.audit(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.audit)


sys.modules[__name__].__class__ = _CallablePackage
