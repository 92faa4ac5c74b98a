"""Unlearning methods as values, and the table of their names."""

import dataclasses
import difflib

from lt_mia_jax.errors import InputError
from lt_mia_jax.unlearning.methods.ascent import (
    GradAscent,
    GradDiff,
    KlMin,
    Retrain,
    Rmu,
    SatImp,
    Wga,
)
from lt_mia_jax.unlearning.methods.guard_it import GuardIt
from lt_mia_jax.unlearning.methods.guarded import (
    GeometricUnlearning,
    GracefulForgetting,
    Guard,
    Pdu,
)
from lt_mia_jax.unlearning.methods.masked import CausalLayerUnlearning, SalUn, Sure
from lt_mia_jax.unlearning.methods.method import Method
from lt_mia_jax.unlearning.methods.mrp import Mrp
from lt_mia_jax.unlearning.methods.preference import (
    AltPo,
    CeU,
    IdkDpo,
    IdkNll,
    Meow,
    Npo,
    SimNpo,
    Tnpo,
    Undial,
)
from lt_mia_jax.unlearning.methods.purge import Purge

METHODS: dict[str, Method] = {
    "grad_ascent": GradAscent(),
    "grad_diff": GradDiff(),
    "kl_min": KlMin(),
    "npo": Npo(),
    "simnpo": SimNpo(),
    "idk_dpo": IdkDpo(),
    "idk_nll": IdkNll(),
    "alt_po": AltPo(),
    "meow": Meow(),
    "rmu": Rmu(),
    "wga": Wga(),
    "tnpo": Tnpo(),
    "wtnpo": Tnpo(alpha=1.5),
    "satimp": SatImp(),
    "undial": Undial(),
    "ce_u": CeU(),
    "pdu": Pdu(),
    "salun": SalUn(),
    "sure": Sure(),
    "gu": GeometricUnlearning(),
    "gu_gradient": GeometricUnlearning(form="gradient"),
    "gu_subspace": GeometricUnlearning(form="subspace"),
    "guard": Guard(),
    "causal_layer_unlearning": CausalLayerUnlearning(),
    "graceful_forgetting": GracefulForgetting(),
    "mrp": Mrp(),
    "guard_it": GuardIt(),
    "purge": Purge(),
    "retrain": Retrain(),
}
"""The built-in methods by name, with published defaults; the only registry."""

ALIASES = {"lwf": "graceful_forgetting", "sha256": "causal_layer_unlearning"}
"""Earlier names. In the literature LwF is Learning *without* Forgetting, another method
(arXiv 1606.09282); `sha256` was the name of the team that published the method."""


def find_method(name: str) -> Method:
    """The built-in method of that name, alias included; `-` stands for `_`.

    Raises:
      InputError: there is none.
    """
    key = name.replace("-", "_").lower()
    key = ALIASES.get(key, key)
    if key not in METHODS:
        close = difflib.get_close_matches(key, METHODS, n=1)
        raise InputError(
            f"no method {name!r}; expected one of {', '.join(METHODS)}, or FILE.py:Name"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    return METHODS[key]


def name_of(method: Method) -> str:
    """The name in `METHODS` of a method, whatever its settings.

    If several names share its class, the one with the most equal settings; if none
    does, the name of its class.
    """

    def differ(name: str) -> int:
        known = METHODS[name]
        fields = dataclasses.fields(method)
        return sum(getattr(method, f.name) != getattr(known, f.name) for f in fields)

    alike = [name for name, known in METHODS.items() if type(known) is type(method)]
    return min(alike, key=differ, default=type(method).__name__)
