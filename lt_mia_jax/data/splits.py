"""Who is a member of what, decided by hashes of ids and never by position.

Three independent draws, each a hash of its own words and a text's id:

- `role(seed, id)`: may the text be used to pretrain a base model, or to attack?
- `attack_split(seed, id)`: does it train, select or test the learned attack? The
  same in every combination, so no test text was ever trained on elsewhere.
- `membership(seed, model, corpus, id)`: member, non-member or validation text of one
  fine-tuning run; drawn anew for each model and corpus.

Adding or removing a document changes no other document's draw.
"""

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Int
from lt_mia_jax.data.texts import hash_unit
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
    """Rows of one corpus by their part in one fine-tuning run; disjoint, sorted."""

    members: Int[np.ndarray, " M"]
    nonmembers: Int[np.ndarray, " N"]
    validation: Int[np.ndarray, " E"]


def role(seed: int, id: str, *, pretrain_fraction: float = PRETRAIN_FRACTION) -> Role:
    """Whether a text may pretrain a base model or belongs to the attack pool."""
    drawn = hash_unit("role", seed, id)
    return "pretrain" if drawn < pretrain_fraction else "attack"


def attack_split(
    seed: int,
    id: str,
    *,
    validation_fraction: float = ATTACK_VALIDATION_FRACTION,
    test_fraction: float = ATTACK_TEST_FRACTION,
) -> Part:
    """Which part of the learned attack's data a text is in, in all combinations."""
    drawn = hash_unit("attack", seed, id)
    if drawn < test_fraction:
        return "test"
    if drawn < test_fraction + validation_fraction:
        return "validation"
    return "train"


def membership(
    seed: int,
    model: str,
    corpus: str,
    id: str,
    *,
    member_fraction: float = MEMBER_FRACTION,
    validation_fraction: float = FINETUNE_VALIDATION_FRACTION,
) -> Membership:
    """A text's part in fine-tuning `model` on `corpus`.

    Independent across models, corpora and seeds. Members and non-members are equally
    likely when the fractions are left alone.
    """
    return _membership_of(
        _membership_draw(seed, model, corpus, id), member_fraction, validation_fraction
    )


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
    parts: Collection[Part] | None = None,
    pretrain_fraction: float = PRETRAIN_FRACTION,
    member_fraction: float = MEMBER_FRACTION,
    validation_fraction: float = FINETUNE_VALIDATION_FRACTION,
) -> Split:
    """Members, non-members and validation rows of one fine-tuning run.

    Of the texts whose `membership` is right, those with the smallest hash values are
    taken. So the counts are exact, and a text that is added can push a text out of
    use but never from one side to the other.

    Args:
      ids: distinct ids of the corpus, in its order.
      seed: with `model` and `corpus`, decides membership; alone, `pool` and `parts`.
      model: name of the target model (or of the run), free text.
      corpus: name of the corpus, free text.
      n_members: members wanted.
      n_nonmembers: non-members wanted.
      n_validation: texts for the fine-tuning's own validation loss.
      pool: use only texts with this `role`; None uses all (say, when nothing is
        pretrained here).
      parts: use only texts with these values of `attack_split`; None uses all.
      pretrain_fraction: see `role`.
      member_fraction: see `membership`.
      validation_fraction: see `membership`.

    Returns:
      Row numbers into `ids`.

    Raises:
      InputError: too few texts for any of the counts, or an id twice.
    """
    if len(set(ids)) != len(ids):
        raise InputError(
            f"corpus {corpus}: {len(ids) - len(set(ids))} ids occur more than once; "
            "remove duplicate texts before splitting"
        )
    drawn: dict[Membership, list[tuple[float, int]]] = {
        "member": [],
        "nonmember": [],
        "finetune_validation": [],
    }
    for row, id in enumerate(ids):
        if pool is not None:
            if role(seed, id, pretrain_fraction=pretrain_fraction) != pool:
                continue
        if parts is not None and attack_split(seed, id) not in parts:
            continue
        unit = _membership_draw(seed, model, corpus, id)
        side = _membership_of(unit, member_fraction, validation_fraction)
        drawn[side].append((unit, row))
    wanted: dict[Membership, int] = {
        "member": n_members,
        "nonmember": n_nonmembers,
        "finetune_validation": n_validation,
    }
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
    rows = {
        side: np.array(sorted(row for _, row in sorted(drawn[side])[:count]), np.int64)
        for side, count in wanted.items()
    }
    return Split(rows["member"], rows["nonmember"], rows["finetune_validation"])


def hold_out(
    ids: Sequence[str], fraction: float, *, seed: int
) -> tuple[list[int], list[int]]:
    """Rows to keep and rows to hold out, at least one of these, in order.

    Args:
      ids: of the texts.
      fraction: share that is held out, chosen by the hash of the ids.
      seed: of the hash.
    """
    order = sorted(range(len(ids)), key=lambda i: hash_unit(seed, "validation", ids[i]))
    count = max(1, round(fraction * len(ids)))
    return sorted(order[count:]), sorted(order[:count])


def rows_by_role(
    ids: Sequence[str], *, seed: int, pretrain_fraction: float = PRETRAIN_FRACTION
) -> dict[Role, Int[np.ndarray, " N"]]:
    """Rows of a corpus in the pretrain role and in the attack role."""
    pretrain = np.array(
        [
            role(seed, id, pretrain_fraction=pretrain_fraction) == "pretrain"
            for id in ids
        ],
        bool,
    )
    return {"pretrain": np.flatnonzero(pretrain), "attack": np.flatnonzero(~pretrain)}


def rows_by_part(ids: Sequence[str], *, seed: int) -> dict[Part, Int[np.ndarray, " N"]]:
    """Rows of a corpus by `attack_split`: train, validation and test."""
    parts = np.array([attack_split(seed, id) for id in ids], str)
    return {
        "train": np.flatnonzero(parts == "train"),
        "validation": np.flatnonzero(parts == "validation"),
        "test": np.flatnonzero(parts == "test"),
    }


def _membership_draw(seed: int, model: str, corpus: str, id: str) -> float:
    return hash_unit("membership", seed, model, corpus, id)


def _membership_of(
    unit: float, member_fraction: float, validation_fraction: float
) -> Membership:
    if unit < member_fraction:
        return "member"
    if unit < member_fraction + validation_fraction:
        return "finetune_validation"
    return "nonmember"
