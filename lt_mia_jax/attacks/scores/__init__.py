"""Membership scores as pure functions of token statistics."""

from lt_mia_jax.attacks.scores.formulas import WBC_PAPER_WINDOWS as WBC_PAPER_WINDOWS
from lt_mia_jax.attacks.scores.formulas import WBC_WINDOWS as WBC_WINDOWS
from lt_mia_jax.attacks.scores.formulas import Scores as Scores
from lt_mia_jax.attacks.scores.formulas import all_scores as all_scores
from lt_mia_jax.attacks.scores.formulas import binoculars as binoculars
from lt_mia_jax.attacks.scores.formulas import (
    count_ez_edge_cases as count_ez_edge_cases,
)
from lt_mia_jax.attacks.scores.formulas import entropy as entropy
from lt_mia_jax.attacks.scores.formulas import ez as ez
from lt_mia_jax.attacks.scores.formulas import ez_edge_cases as ez_edge_cases
from lt_mia_jax.attacks.scores.formulas import fast_detectgpt as fast_detectgpt
from lt_mia_jax.attacks.scores.formulas import log_rank as log_rank
from lt_mia_jax.attacks.scores.formulas import loss as loss
from lt_mia_jax.attacks.scores.formulas import lowercase as lowercase
from lt_mia_jax.attacks.scores.formulas import lrr as lrr
from lt_mia_jax.attacks.scores.formulas import max_k as max_k
from lt_mia_jax.attacks.scores.formulas import min_k as min_k
from lt_mia_jax.attacks.scores.formulas import min_k_plus_plus as min_k_plus_plus
from lt_mia_jax.attacks.scores.formulas import rank as rank
from lt_mia_jax.attacks.scores.formulas import ratio as ratio
from lt_mia_jax.attacks.scores.formulas import reference as reference
from lt_mia_jax.attacks.scores.formulas import wbc as wbc
from lt_mia_jax.attacks.scores.formulas import zlib as zlib
