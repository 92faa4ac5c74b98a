"""Texts, corpora, splits, token ids and batches."""

from lt_mia_jax.data.batches import Batch as Batch
from lt_mia_jax.data.batches import Batches as Batches
from lt_mia_jax.data.batches import batch_indices as batch_indices
from lt_mia_jax.data.splits import Split as Split
from lt_mia_jax.data.splits import attack_split as attack_split
from lt_mia_jax.data.splits import hash_unit as hash_unit
from lt_mia_jax.data.splits import membership as membership
from lt_mia_jax.data.splits import role as role
from lt_mia_jax.data.splits import rows_by_part as rows_by_part
from lt_mia_jax.data.splits import rows_by_role as rows_by_role
from lt_mia_jax.data.splits import split_corpus as split_corpus
from lt_mia_jax.data.texts import Text as Text
from lt_mia_jax.data.texts import fingerprint as fingerprint
from lt_mia_jax.data.texts import read_texts as read_texts
from lt_mia_jax.data.texts import text_id as text_id
from lt_mia_jax.data.texts import write_texts as write_texts
from lt_mia_jax.data.tokenize import Encoded as Encoded
from lt_mia_jax.data.tokenize import check_vocabulary as check_vocabulary
from lt_mia_jax.data.tokenize import encode as encode
from lt_mia_jax.data.tokenize import train_bpe as train_bpe
