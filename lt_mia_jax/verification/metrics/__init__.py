"""Numbers of the unlearning report card: per-item values first, then aggregates."""

from lt_mia_jax.verification.metrics.control import accepted as accepted
from lt_mia_jax.verification.metrics.control import calibrated_risk as calibrated_risk
from lt_mia_jax.verification.metrics.control import risk_p_value as risk_p_value
from lt_mia_jax.verification.metrics.generation import has_words as has_words
from lt_mia_jax.verification.metrics.generation import memo as memo
from lt_mia_jax.verification.metrics.generation import ngram_entropy as ngram_entropy
from lt_mia_jax.verification.metrics.generation import (
    rouge_1_precision as rouge_1_precision,
)
from lt_mia_jax.verification.metrics.generation import rouge_l_f1 as rouge_l_f1
from lt_mia_jax.verification.metrics.generation import rouge_l_recall as rouge_l_recall
from lt_mia_jax.verification.metrics.intervals import Interval as Interval
from lt_mia_jax.verification.metrics.intervals import (
    bootstrap_interval as bootstrap_interval,
)
from lt_mia_jax.verification.metrics.intervals import quantiles as quantiles
from lt_mia_jax.verification.metrics.memorization import (
    AnswerStatistics as AnswerStatistics,
)
from lt_mia_jax.verification.metrics.memorization import (
    answer_statistics as answer_statistics,
)
from lt_mia_jax.verification.metrics.memorization import (
    candidate_rank as candidate_rank,
)
from lt_mia_jax.verification.metrics.memorization import (
    exact_memorisation as exact_memorisation,
)
from lt_mia_jax.verification.metrics.memorization import (
    extraction_strength as extraction_strength,
)
from lt_mia_jax.verification.metrics.memorization import macro_average as macro_average
from lt_mia_jax.verification.metrics.memorization import mean_nll as mean_nll
from lt_mia_jax.verification.metrics.memorization import probability as probability
from lt_mia_jax.verification.metrics.memorization import slot_accuracy as slot_accuracy
from lt_mia_jax.verification.metrics.memorization import slot_log_rank as slot_log_rank
from lt_mia_jax.verification.metrics.muse import PrivLeak as PrivLeak
from lt_mia_jax.verification.metrics.muse import cut_at_stop as cut_at_stop
from lt_mia_jax.verification.metrics.muse import (
    knowledge_memorisation as knowledge_memorisation,
)
from lt_mia_jax.verification.metrics.muse import member_auc as member_auc
from lt_mia_jax.verification.metrics.muse import priv_leak as priv_leak
from lt_mia_jax.verification.metrics.muse import (
    priv_leak_of_scores as priv_leak_of_scores,
)
from lt_mia_jax.verification.metrics.muse import (
    verbatim_memorisation as verbatim_memorisation,
)
from lt_mia_jax.verification.metrics.paths import AscentBound as AscentBound
from lt_mia_jax.verification.metrics.paths import ascent_bound as ascent_bound
from lt_mia_jax.verification.metrics.paths import ascent_difference as ascent_difference
from lt_mia_jax.verification.metrics.paths import retrain_distance as retrain_distance
from lt_mia_jax.verification.metrics.privacy import Completeness as Completeness
from lt_mia_jax.verification.metrics.privacy import ThresholdAttack as ThresholdAttack
from lt_mia_jax.verification.metrics.privacy import WorstGroup as WorstGroup
from lt_mia_jax.verification.metrics.privacy import epsilon as epsilon
from lt_mia_jax.verification.metrics.privacy import fitting_signal as fitting_signal
from lt_mia_jax.verification.metrics.privacy import (
    forgetting_quality_score as forgetting_quality_score,
)
from lt_mia_jax.verification.metrics.privacy import leakage_table as leakage_table
from lt_mia_jax.verification.metrics.privacy import privacy_leakage as privacy_leakage
from lt_mia_jax.verification.metrics.privacy import threshold_attack as threshold_attack
from lt_mia_jax.verification.metrics.privacy import (
    unlearning_completeness as unlearning_completeness,
)
from lt_mia_jax.verification.metrics.privacy import worst_group as worst_group
from lt_mia_jax.verification.metrics.robustness import EVERY_MATRIX as EVERY_MATRIX
from lt_mia_jax.verification.metrics.robustness import changed_codes as changed_codes
from lt_mia_jax.verification.metrics.robustness import closeness as closeness
from lt_mia_jax.verification.metrics.robustness import quantise as quantise
from lt_mia_jax.verification.metrics.robustness import (
    recovered_fraction as recovered_fraction,
)
from lt_mia_jax.verification.metrics.robustness import (
    relearning_area as relearning_area,
)
from lt_mia_jax.verification.metrics.robustness import (
    relearning_robustness as relearning_robustness,
)
from lt_mia_jax.verification.metrics.similarity import layerwise_cka as layerwise_cka
from lt_mia_jax.verification.metrics.similarity import linear_cka as linear_cka
from lt_mia_jax.verification.metrics.tofu import UTILITY_PARTS as UTILITY_PARTS
from lt_mia_jax.verification.metrics.tofu import UTILITY_SETS as UTILITY_SETS
from lt_mia_jax.verification.metrics.tofu import ForgetQuality as ForgetQuality
from lt_mia_jax.verification.metrics.tofu import UtilityItems as UtilityItems
from lt_mia_jax.verification.metrics.tofu import forget_quality as forget_quality
from lt_mia_jax.verification.metrics.tofu import (
    forget_truth_score as forget_truth_score,
)
from lt_mia_jax.verification.metrics.tofu import model_utility as model_utility
from lt_mia_jax.verification.metrics.tofu import (
    normalized_probability as normalized_probability,
)
from lt_mia_jax.verification.metrics.tofu import (
    retain_truth_score as retain_truth_score,
)
from lt_mia_jax.verification.metrics.tofu import truth_probability as truth_probability
from lt_mia_jax.verification.metrics.tofu import truth_ratio as truth_ratio
from lt_mia_jax.verification.metrics.tofu import utility_columns as utility_columns
from lt_mia_jax.verification.metrics.tofu import utility_parts as utility_parts
from lt_mia_jax.verification.metrics.traces import Trace as Trace
from lt_mia_jax.verification.metrics.traces import trace_accuracy as trace_accuracy
