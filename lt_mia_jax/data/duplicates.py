"""Removal of documents that mostly repeat earlier ones."""

import hashlib
import re
from collections.abc import Iterable

import numpy as np

from lt_mia_jax.arrays import UInt

NGRAM = 13
REPEATED_FRACTION = 0.3

_TOKEN = re.compile(r"\w+|[^\w\s]")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplying by it loses nothing


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
        self._sample = np.uint64(sample)
        self._seen: set[int] = set()
        self._hash_of: dict[str, int] = {}

    def accept(self, text: str) -> bool:
        """Whether a document is new; later ones are then compared with it too."""
        all_grams = self._grams(text)
        if not all_grams.size:
            return False
        # The low bits of a polynomial depend on low bits only; fold the high ones in.
        mixed = all_grams ^ (all_grams >> np.uint64(32))
        sampled = all_grams[mixed % self._sample == 0]
        # A document without a sampled n-gram is represented by its smallest one.
        grams = set(sampled.tolist() or [int(all_grams.min())])
        repeated = len(grams & self._seen)
        if repeated > self._fraction * len(grams):
            return False
        self._seen |= grams
        return True

    def _grams(self, text: str) -> UInt[np.ndarray, " G"]:
        hash_of = self._hash_of
        words = []
        for word in _TOKEN.findall(text.casefold()):
            known = hash_of.get(word)
            if known is None:
                digest = hashlib.blake2b(
                    word.encode("utf-8", "surrogatepass"), digest_size=8
                ).digest()
                known = hash_of[word] = int.from_bytes(digest, "little")
            words.append(known)
        hashes = np.array(words, np.uint64)
        width = min(self._ngram, len(hashes))
        grams = np.zeros(len(hashes) - width + 1 if width else 0, np.uint64)
        for offset in range(width):  # Horner's rule modulo 2**64
            grams = grams * _BASE + hashes[offset : offset + len(grams)]
        return grams


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
