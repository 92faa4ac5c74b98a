"""Unlearning methods as values, and the table of their names."""

import dataclasses

from lt_mia_jax.unlearning.methods.ascent import GradAscent as GradAscent
from lt_mia_jax.unlearning.methods.ascent import GradDiff as GradDiff
from lt_mia_jax.unlearning.methods.ascent import KlMin as KlMin
from lt_mia_jax.unlearning.methods.ascent import Retrain as Retrain
from lt_mia_jax.unlearning.methods.ascent import Rmu as Rmu
from lt_mia_jax.unlearning.methods.ascent import SatImp as SatImp
from lt_mia_jax.unlearning.methods.ascent import Wga as Wga
from lt_mia_jax.unlearning.methods.guarded import (
    GeometricUnlearning as GeometricUnlearning,
)
from lt_mia_jax.unlearning.methods.guarded import Guard as Guard
from lt_mia_jax.unlearning.methods.guarded import Lwf as Lwf
from lt_mia_jax.unlearning.methods.guarded import Pdu as Pdu
from lt_mia_jax.unlearning.methods.guarded import SalUn as SalUn
from lt_mia_jax.unlearning.methods.guarded import Sha256 as Sha256
from lt_mia_jax.unlearning.methods.guarded import Sure as Sure
from lt_mia_jax.unlearning.methods.intervened import GuardIt as GuardIt
from lt_mia_jax.unlearning.methods.intervened import Mrp as Mrp
from lt_mia_jax.unlearning.methods.method import Alternative as Alternative
from lt_mia_jax.unlearning.methods.method import LossTerm as LossTerm
from lt_mia_jax.unlearning.methods.method import Method as Method
from lt_mia_jax.unlearning.methods.method import Schedule as Schedule
from lt_mia_jax.unlearning.methods.preference import AltPo as AltPo
from lt_mia_jax.unlearning.methods.preference import CeU as CeU
from lt_mia_jax.unlearning.methods.preference import IdkDpo as IdkDpo
from lt_mia_jax.unlearning.methods.preference import IdkNll as IdkNll
from lt_mia_jax.unlearning.methods.preference import Meow as Meow
from lt_mia_jax.unlearning.methods.preference import Npo as Npo
from lt_mia_jax.unlearning.methods.preference import SimNpo as SimNpo
from lt_mia_jax.unlearning.methods.preference import Tnpo as Tnpo
from lt_mia_jax.unlearning.methods.preference import Undial as Undial

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
    "sha256": Sha256(),
    "lwf": Lwf(),
    "mrp": Mrp(),
    "guard_it": GuardIt(),
    "retrain": Retrain(),
}
"""By name, with published defaults."""


def name_of(method: Method) -> str:
    """The name in `METHODS` of a method, whatever its settings.

    Where several names share a class, the one whose settings differ least; that of its
    class if there is none.
    """

    def differ(name: str) -> int:
        known = METHODS[name]
        fields = dataclasses.fields(method)
        return sum(getattr(method, f.name) != getattr(known, f.name) for f in fields)

    alike = [name for name, known in METHODS.items() if type(known) is type(method)]
    return min(alike, key=differ, default=type(method).__name__)
