"""Rows of several feature stores as one table, kept in memory when they fit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import fingerprint

_BLOCK = 1024  # rows read at a time; 80 MB at the paper's sizes


@runtime_checkable
class FeatureSource(Protocol):
    """What training and scoring need of a feature store: one combination."""

    @property
    def name(self) -> str:
        """Name of the combination."""
        ...

    @property
    def meta(self) -> Mapping[str, Any]:
        """JSON values that say where the features come from."""
        ...

    @property
    def n(self) -> int:
        """Number of texts."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """Text ids."""
        ...

    @property
    def labels(self) -> Sequence[int | None] | Shaped[np.ndarray, " N"]:
        """1 member, 0 non-member; None, unknown, is refused."""
        ...

    @property
    def split(self) -> Sequence[str] | Shaped[np.ndarray, " N"]:
        """`train`, `validation` or `test` per text."""
        ...

    @property
    def n_steps(self) -> Int[np.ndarray, " N"]:
        """Steps of each text up to the last valid one, holes before it included."""
        ...

    def features(
        self, rows: Int[np.ndarray, " B"]
    ) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
        """Features and mask of some texts."""
        ...


class Block(NamedTuple):
    """Features of some rows, ready for the device."""

    features: Float[np.ndarray, "B T C"]
    mask: Bool[np.ndarray, "B T"]


class Rows:
    """The rows of one role (`train`, `validation`) over all stores, numbered from 0."""

    def __init__(
        self,
        stores: Sequence[FeatureSource],
        role: str,
        *,
        cache_bytes: float = 0.0,
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        """Collect the rows whose split is `role`; refuse stores that do not fit."""
        self.stores = tuple(stores)
        self.role = role
        self._dtype = np.dtype(dtype)
        _check_agreement(self.stores)
        chosen = [np.flatnonzero(np.asarray(s.split) == role) for s in self.stores]
        self.store = np.repeat(np.arange(len(chosen)), [len(c) for c in chosen])
        self.row = np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64)
        if not len(self.row):
            raise InputError(
                f"no row with split {role!r} in the {len(self.stores)} feature stores "
                f"({', '.join(s.name for s in self.stores)}); extract with more texts"
            )
        parts = list(zip(self.stores, chosen, strict=True))
        self.labels = np.concatenate([_labels(s, c) for s, c in parts])
        pairs = zip(self.store.tolist(), self.row.tolist(), strict=True)
        self.ids = [self.stores[s].ids[int(row)] for s, row in pairs]
        self.steps = np.concatenate([s.n_steps[c] for s, c in parts]).astype(np.int64)
        shapes = {s.name: s.features(c[:1])[0].shape[1:] for s, c in parts if len(c)}
        if len(set(shapes.values())) > 1:
            raise InputError(
                f"feature stores differ in (steps, columns): {shapes}; extract them "
                "with one length and one k"
            )
        self.length, self.columns = next(iter(shapes.values()))
        row_bytes = self.length * (self.columns * self._dtype.itemsize + 1)
        self._cache: Block | None = None
        if len(self) * row_bytes <= cache_bytes:
            self._cache = self._load()

    def __len__(self) -> int:
        return len(self.row)

    @property
    def cached(self) -> bool:
        """Whether the features are held in memory."""
        return self._cache is not None

    def members_of(self, store: int) -> Int[np.ndarray, " B"]:
        """Numbers of the rows that come from one store."""
        return np.flatnonzero(self.store == store)

    def fingerprint(self) -> str:
        """SHA-256 over ids, labels and origin of the rows, in order."""
        rows = zip(self.store, self.row, self.ids, self.labels, strict=True)
        lines = (
            f"\n{self.stores[store].name}\x1f{row}\x1f{text_id}\x1f{label:g}"
            for store, row, text_id, label in rows
        )
        return fingerprint(self.role, *lines)

    def read(self, numbers: Int[np.ndarray, " B"]) -> Block:
        """Features of some rows, in the given order."""
        if self._cache is not None:
            return Block(self._cache.features[numbers], self._cache.mask[numbers])
        features = np.empty((len(numbers), self.length, self.columns), self._dtype)
        mask = np.empty((len(numbers), self.length), bool)
        for store in np.unique(self.store[numbers]):
            here = np.flatnonzero(self.store[numbers] == store)
            # Ascending rows turn scattered reads into one pass over the file.
            here = here[np.argsort(self.row[numbers[here]], kind="stable")]
            found = self.stores[store].features(self.row[numbers[here]])
            with np.errstate(over="ignore"):  # found by the check below
                features[here], mask[here] = found[0].astype(self._dtype), found[1]
        self._check_finite(numbers, features, mask)
        self._check_steps(numbers, mask)
        return Block(features, mask)

    def _check_finite(
        self, numbers: np.ndarray, features: np.ndarray, mask: np.ndarray
    ) -> None:
        # Summing is much cheaper than testing every value, and rarely alarms.
        if np.isfinite(features.sum(dtype=np.float64)):
            return
        wrong = ~(np.isfinite(features).all(axis=2) | ~mask).all(axis=1)
        if not wrong.any():
            return
        first = numbers[wrong][0]
        store = self.stores[self.store[first]]
        raise InputError(
            f"{store.name}: {int(wrong.sum())} texts have features that are not finite "
            f"in {self._dtype} (first: id {self.ids[first]}); extract them again, or "
            "use cache_dtype float32"
        )

    def _check_steps(self, numbers: np.ndarray, mask: np.ndarray) -> None:
        # Packing believes these numbers: too small a one would cut a text unnoticed.
        ends = (mask * np.arange(1, self.length + 1)).max(axis=1)
        wrong = ends != self.steps[numbers]
        if not wrong.any():
            return
        first = int(np.argmax(wrong))
        store = self.stores[self.store[numbers[first]]]
        raise InputError(
            f"{store.name}: n_steps and mask differ for {int(wrong.sum())} texts (id "
            f"{self.ids[numbers[first]]}: {self.steps[numbers[first]]} steps, the last "
            f"valid one is number {ends[first]}); n_steps has to count up to that one"
        )

    def _load(self) -> Block:
        features = np.empty((len(self), self.length, self.columns), self._dtype)
        mask = np.empty((len(self), self.length), bool)
        for numbers in self.blocks():
            features[numbers], mask[numbers] = self.read(numbers)
        return Block(features, mask)

    def blocks(self) -> Iterator[Int[np.ndarray, " B"]]:
        """All row numbers in order, some at a time."""
        for start in range(0, len(self), _BLOCK):
            yield np.arange(start, min(start + _BLOCK, len(self)))

    def moments(
        self, select: Callable[[np.ndarray], np.ndarray] = np.asarray
    ) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
        """Mean and standard deviation of each column over valid steps, float64.

        A column that does not vary gets the deviation 1. `select` makes of vectors
        `"N C"` those that are looked at.
        """
        seen = select(np.zeros((1, self.columns))).shape[-1]
        count, mean, squares = 0, np.zeros(seen), np.zeros(seen)
        for numbers in self.blocks():
            features, mask = self.read(numbers)
            steps = select(features[mask]).astype(np.float64)
            if not len(steps):
                continue
            # Merging block means keeps precision where a column's mean is large.
            here, both = steps.mean(axis=0), count + len(steps)
            shift = here - mean
            squares += np.square(steps - here).sum(axis=0)
            squares += np.square(shift) * count * len(steps) / both
            mean += shift * len(steps) / both
            count = both
        deviation = np.sqrt(squares / max(1, count))
        return mean, np.where(deviation > 1e-6, deviation, 1.0)


def _check_agreement(stores: Sequence[FeatureSource]) -> None:
    """Refuse stores whose texts became tokens in different ways."""

    def differ(what: str, chosen: Sequence[FeatureSource], fix: str) -> None:
        found = {store.meta.get(what): store.name for store in chosen}
        if len(found) > 1:
            shown = "; ".join(f"{name}: {x or 'none'}" for x, name in found.items())
            raise InputError(f"feature stores differ in {what} ({shown}); {fix}")

    differ(
        "score", stores, "extract all of them with one kind of texts and one --score"
    )
    # Models of another reference may have been trained in another way.
    for reference in {store.meta.get("reference") for store in stores}:
        same = [store for store in stores if store.meta.get("reference") == reference]
        differ("bos", same, "extract the stores of one model with one --bos")


def _labels(store: FeatureSource, rows: np.ndarray) -> np.ndarray:
    # None (label unknown) becomes NaN, which no label equals.
    labels = np.asarray(store.labels, dtype=np.float64)[rows]
    bad = ~np.isin(labels, (0.0, 1.0))
    if bad.any():
        raise InputError(
            f"{store.name}: {int(bad.sum())} rows have no label 0 or 1 (first: row "
            f"{int(rows[bad][0])}); extract with members and non-members"
        )
    return labels.astype(np.float32)
