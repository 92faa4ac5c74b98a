"""Documents that mostly repeat earlier ones, and pairs of near copies."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lt_mia_jax.arrays import Int

NGRAM = 13
REPEATED_FRACTION = 0.3

COPY_NGRAM, COPY_FRACTION = 5, 0.5
_SHORTEST = 8  # words of a text whose n-grams say what it is about
_MOST_GRAMS = 4_000_000
_MOST_OWNERS = 100
"""An n-gram of more texts than this is a phrase, and no sign of a copy."""

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplying by it loses nothing


class _Hash:
    """N-grams of words as 64-bit numbers, the same on every machine."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}

    def grams(self, words: Sequence[str], ngram: int, every: Any = 1) -> set[int]:
        """The distinct n-grams of a document, one if it is shorter.

        With `every` above 1, those whose hash is a multiple of it; the smallest one
        represents a document without any.
        """
        hashes = np.array([self._word(word) for word in words], np.uint64)
        width = min(ngram, len(hashes))
        grams = np.zeros(len(hashes) - width + 1, np.uint64)
        for offset in range(width):  # Horner's rule modulo 2**64
            grams = grams * _BASE + hashes[offset : offset + len(grams)]
        # The low bits of a polynomial depend on low bits only; fold the high ones in.
        mixed = grams ^ (grams >> np.uint64(32))
        sampled = grams[mixed % np.uint64(every) == 0]
        return set(sampled.tolist() or [int(grams.min())])

    def _word(self, word: str) -> int:
        known = self._of.get(word)
        if known is None:
            raw = word.encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(raw, digest_size=8).digest()
            known = self._of[word] = int.from_bytes(digest, "little")
        return known


class NearDuplicates:
    """A filter of documents by the n-grams of those that it accepted.

    Words are compared without case. A document shorter than `ngram` words is one
    n-gram; one without words is never accepted. N-grams are stored as 64-bit hashes. A
    collision is possible and harmless.

    With `sample` above 1, only n-grams whose hash is a multiple of it count. This
    divides the memory by `sample`; the repeated fraction is then an estimate.
    """

    def __init__(
        self,
        *,
        ngram: int = NGRAM,
        repeated_fraction: float = REPEATED_FRACTION,
        sample: int = 1,
    ):
        self._ngram = ngram
        self._fraction = repeated_fraction
        self._sample = sample
        self._seen: set[int] = set()
        self._hash = _Hash()

    def accept(self, text: str) -> bool:
        """Whether a document is new; later ones are then compared with it too."""
        words = _TOKEN.findall(text.casefold())
        if not words:
            return False
        grams = self._hash.grams(words, self._ngram, self._sample)
        repeated = len(grams & self._seen)
        if repeated > self._fraction * len(grams):
            return False
        self._seen |= grams
        return True


def distinct(
    texts: Iterable[str],
    *,
    ngram: int = NGRAM,
    repeated_fraction: float = REPEATED_FRACTION,
) -> list[str]:
    """The texts that do not mostly repeat earlier ones of the list, in order.

    A text is removed if more than `repeated_fraction` of its distinct n-grams occur in
    earlier texts that are kept. Exact copies and texts without words are removed too.

    Source: the 13-gram rule of Language Models are Few-Shot Learners (arXiv
    2005.14165, appendix C), with a fraction instead of a single match.
    """
    filtered = NearDuplicates(ngram=ngram, repeated_fraction=repeated_fraction)
    return [text for text in texts if filtered.accept(text)]


def normalized(text: str) -> str:
    """The words of a text in lower case: without white space and punctuation.

    A text without words is itself, stripped.
    """
    return " ".join(_WORD.findall(text.casefold())) or text.strip()


def copies(
    texts: Sequence[str],
    *,
    ngram: int = COPY_NGRAM,
    fraction: float = COPY_FRACTION,
) -> Int[np.ndarray, " N"]:
    """For each text the index of the first text that it nearly repeats; else its own.

    Texts are near copies if their words are the same (`normalized`), or if more than
    `fraction` of the distinct n-grams of words of the shorter one occur in the other.
    Texts of less than 8 words are compared as wholes. A copy of a copy counts.

    Example:
      >>> from lt_mia_jax.data.duplicates import copies
      >>> copies(["To be, or not to be", "# to be or not to be", "Hamlet"]).tolist()
      [0, 0, 2]
    """
    words = [normalized(text).split(" ") for text in texts]
    # Beyond some millions of n-grams a sample of them, the same in every text.
    every = 1 + sum(map(len, words)) // _MOST_GRAMS
    table = _Hash()
    owners: dict[int, list[int]] = {}
    sizes: list[int] = []
    first = np.arange(len(texts))
    for index, own in enumerate(words):
        if len(own) < _SHORTEST:  # the end makes it no n-gram of a longer text
            grams = table.grams([*own, ""], _SHORTEST, every)
        else:
            grams = table.grams(own, ngram, every)
        shared = Counter(one for gram in grams for one in owners.get(gram, ()))
        sizes.append(len(grams))
        near = [
            one
            for one, n in shared.items()
            if n > fraction * min(len(grams), sizes[one])
        ]
        if near:
            first[index] = first[min(near)]
        for gram in grams:
            known = owners.setdefault(gram, [])
            if len(known) < _MOST_OWNERS:
                known.append(index)
    return first
