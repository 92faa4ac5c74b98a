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
    parts: Collection[Part] | None = None,
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
    wanted: dict[Membership, int] = {
        "member": n_members,
        "nonmember": n_nonmembers,
        "finetune_validation": n_validation,
    }
    drawn: dict[Membership, list[tuple[float, int]]] = {side: [] for side in wanted}
    for row, id in enumerate(ids):
        if pool is not None and role(seed, id) != pool:
            continue
        if parts is not None and attack_split(seed, id) not in parts:
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


def rows_by_role(ids: Sequence[str], *, seed: int) -> dict[Role, Int[np.ndarray, " N"]]:
    """Rows of a corpus in the pretrain role and in the attack role."""
    pretrain = np.array([role(seed, id) == "pretrain" for id in ids], bool)
    return {"pretrain": np.flatnonzero(pretrain), "attack": np.flatnonzero(~pretrain)}


def _draw(seed: int, model: str, corpus: str, id: str) -> tuple[Membership, float]:
    """The part that a text's hash value gives it, and that value."""
    unit = hash_unit("membership", seed, model, corpus, id)
    if unit < MEMBER_FRACTION:
        return "member", unit
    validation = unit < MEMBER_FRACTION + FINETUNE_VALIDATION_FRACTION
    return "finetune_validation" if validation else "nonmember", unit
