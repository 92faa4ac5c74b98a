"""Texts, corpora, splits, token ids and batches."""

from typing import TYPE_CHECKING

from lt_mia_jax.lazy import lazy_exports

if TYPE_CHECKING:
    from lt_mia_jax.data.answers import EncodedAnswers as EncodedAnswers
    from lt_mia_jax.data.answers import encode_answers as encode_answers
    from lt_mia_jax.data.batches import Batch as Batch
    from lt_mia_jax.data.batches import Batches as Batches
    from lt_mia_jax.data.batches import batch_indices as batch_indices
    from lt_mia_jax.data.benchmark_catalog import BENCHMARKS as BENCHMARKS
    from lt_mia_jax.data.benchmarks import Benchmark as Benchmark
    from lt_mia_jax.data.benchmarks import load_benchmark as load_benchmark
    from lt_mia_jax.data.corpora import Corpus as Corpus
    from lt_mia_jax.data.corpora import deduplicate as deduplicate
    from lt_mia_jax.data.corpora import load_corpus as load_corpus
    from lt_mia_jax.data.domains import DOMAINS as DOMAINS
    from lt_mia_jax.data.domains import Domain as Domain
    from lt_mia_jax.data.hub import HUB_DATASETS as HUB_DATASETS
    from lt_mia_jax.data.hub import HubDataset as HubDataset
    from lt_mia_jax.data.questions import AnswerTemplate as AnswerTemplate
    from lt_mia_jax.data.questions import Question as Question
    from lt_mia_jax.data.questions import check_disjoint as check_disjoint
    from lt_mia_jax.data.questions import read_questions as read_questions
    from lt_mia_jax.data.questions import write_questions as write_questions
    from lt_mia_jax.data.splits import Split as Split
    from lt_mia_jax.data.splits import attack_split as attack_split
    from lt_mia_jax.data.splits import membership as membership
    from lt_mia_jax.data.splits import role as role
    from lt_mia_jax.data.splits import rows_by_role as rows_by_role
    from lt_mia_jax.data.splits import split_corpus as split_corpus
    from lt_mia_jax.data.texts import Text as Text
    from lt_mia_jax.data.texts import fingerprint as fingerprint
    from lt_mia_jax.data.texts import hash_unit as hash_unit
    from lt_mia_jax.data.texts import read_texts as read_texts
    from lt_mia_jax.data.texts import text_id as text_id
    from lt_mia_jax.data.texts import write_texts as write_texts
    from lt_mia_jax.data.texts import zlib_length as zlib_length
    from lt_mia_jax.data.tokenize import Encoded as Encoded
    from lt_mia_jax.data.tokenize import encode as encode
    from lt_mia_jax.data.tokenize import scored_texts as scored_texts
    from lt_mia_jax.data.tokenize import train_bpe as train_bpe

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
