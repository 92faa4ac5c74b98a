"""Membership and splits of texts, decided by hashes of ids, never by position.

Three independent draws, each a hash of its own purpose and a text's id:

- `role(seed, id)`: may the text be used to pretrain a base model, or to attack?
- `attack_split(seed, id)`: does it train, select or test the learned attack? The
  same in every combination, so no test text is a training text elsewhere.
- `membership(seed, model, corpus, id)`: member, non-member or validation text of one
  fine-tuning run; drawn anew for each model and corpus.

Adding or removing a document changes no other document's draw.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Int
from lt_mia_jax.data.duplicates import copies
from lt_mia_jax.data.texts import Text, hash_unit
from lt_mia_jax.errors import InputError

Role = Literal["pretrain", "attack"]
Part = Literal["train", "validation", "test"]
Membership = Literal["member", "nonmember", "finetune_validation"]

PRETRAIN_FRACTION = 0.5
ATTACK_VALIDATION_FRACTION = 0.15
ATTACK_TEST_FRACTION = 0.15
MEMBER_FRACTION = 0.45
FINETUNE_VALIDATION_FRACTION = 0.10


class Split(NamedTuple):
    """Row numbers of one corpus by role in one fine-tuning run; disjoint, sorted."""

    members: Int[np.ndarray, " M"]
    nonmembers: Int[np.ndarray, " N"]
    validation: Int[np.ndarray, " E"]


def role(seed: int, id: str) -> Role:
    """Whether a text may pretrain a base model or belongs to the attack pool."""
    drawn = hash_unit("role", seed, id)
    return "pretrain" if drawn < PRETRAIN_FRACTION else "attack"


def attack_split(seed: int, id: str) -> Part:
    """Which part of the learned attack's data a text is in, in all combinations."""
    drawn = hash_unit("attack", seed, id)
    if drawn < ATTACK_TEST_FRACTION:
        return "test"
    validation = drawn < ATTACK_TEST_FRACTION + ATTACK_VALIDATION_FRACTION
    return "validation" if validation else "train"


def membership(seed: int, model: str, corpus: str, id: str) -> Membership:
    """A text's part in fine-tuning `model` on `corpus`.

    Independent across models, corpora and seeds; members and non-members are equally
    likely.
    """
    return _draw(seed, model, corpus, id)[0]


def split_corpus(
    ids: Sequence[str],
    *,
    seed: int,
    model: str,
    corpus: str,
    n_members: int,
    n_nonmembers: int,
    n_validation: int,
    pool: Role | None = "attack",
) -> Split:
    """Members, non-members and validation rows of one fine-tuning run.

    For each part, the texts with the smallest hash values are taken. So counts are
    exact, and an added text can replace another one but never move it to another part.

    Args:
      ids: distinct ids of the corpus, in its order.
      seed: with `model` and `corpus`, decides membership; alone, `pool`.
      model: any name of the target model or of the run.
      corpus: any name of the corpus.
      n_members: number of members.
      n_nonmembers: number of non-members.
      n_validation: number of texts for the validation loss of fine-tuning.
      pool: only texts with this `role`; None: all, say when nothing is pretrained.

    Raises:
      InputError: too few texts for any of the counts, or an id twice.
    """
    if len(set(ids)) != len(ids):
        raise InputError(
            f"corpus {corpus}: {len(ids) - len(set(ids))} ids occur more than once; "
            "remove duplicate texts before splitting"
        )
    wanted: dict[Membership, int] = {
        "member": n_members,
        "nonmember": n_nonmembers,
        "finetune_validation": n_validation,
    }
    drawn: dict[Membership, list[tuple[float, int]]] = {side: [] for side in wanted}
    for row, id in enumerate(ids):
        if pool is not None and role(seed, id) != pool:
            continue
        side, unit = _draw(seed, model, corpus, id)
        drawn[side].append((unit, row))
    short = [
        f"{side}: {len(drawn[side])} found, {count} needed"
        for side, count in wanted.items()
        if len(drawn[side]) < count
    ]
    if short:
        raise InputError(
            f"corpus {corpus} with {len(ids)} documents is too small for this run "
            f"({'; '.join(short)}); ask for fewer texts or use a larger corpus"
        )
    return Split(
        *(
            np.array(sorted(row for _, row in sorted(drawn[side])[:count]), np.int64)
            for side, count in wanted.items()
        )
    )


def hold_out(
    texts: Sequence[Text], fraction: float, *, seed: int
) -> tuple[list[int], list[int]]:
    """Rows to keep and rows to hold out, in order, chosen by a hash of seed and ids.

    Near copies stay together: the loss on a held-out copy of a kept text says nothing
    about texts that are new. At least one row is held out, and none where all texts are
    near copies of one.
    """
    groups: dict[int, list[int]] = {}
    for row, first in enumerate(copies([text.text for text in texts]).tolist()):
        groups.setdefault(first, []).append(row)
    if len(groups) < 2:
        return list(range(len(texts))), []
    order = sorted(
        groups, key=lambda first: hash_unit(seed, "validation", texts[first].id)
    )
    count = max(1, round(fraction * len(texts)))
    held: list[int] = []
    for first in order:
        if len(held) + len(groups[first]) <= count:
            held += groups[first]
    held = held or min(groups.values(), key=len)
    return sorted({*range(len(texts))} - {*held}), sorted(held)


def rows_by_role(ids: Sequence[str], *, seed: int) -> dict[Role, Int[np.ndarray, " N"]]:
    """Rows of a corpus in the pretrain role and in the attack role."""
    pretrain = np.array([role(seed, id) == "pretrain" for id in ids], bool)
    return {"pretrain": np.flatnonzero(pretrain), "attack": np.flatnonzero(~pretrain)}


def _draw(seed: int, model: str, corpus: str, id: str) -> tuple[Membership, float]:
    """The part of a text, and the hash value that decides it."""
    unit = hash_unit("membership", seed, model, corpus, id)
    if unit < MEMBER_FRACTION:
        return "member", unit
    validation = unit < MEMBER_FRACTION + FINETUNE_VALIDATION_FRACTION
    return "finetune_validation" if validation else "nonmember", unit
