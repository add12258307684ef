"""Near-duplicate texts: shingles, MinHash and locality-sensitive hashing.

A text is the set of its word 3-shingles (NFKC, case folded, punctuation dropped; CJK characters
count as words). Two texts are near-duplicates where the Jaccard similarity of their sets reaches
a threshold. MinHash signatures (Broder 1997) cut into bands (Indyk and Motwani 1998) propose
pairs in near-linear time; every proposed pair is checked on the sets themselves. The result
depends on the texts alone.

Work per bucket is bounded: a text is compared with the `_WINDOW` texts before it in a bucket, so
a pair may be missed where hundreds of distinct texts are alike below the threshold.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aios.core.errors import UsageError

Hashes = NDArray[np.uint64]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_PERMUTATIONS = 128
_RECALL = 0.999
_WINDOW = 64
_CHUNK = 4096
_SEED = 0x5EA1


def words(text: str) -> list[str]:
    """The words that shingles are made of: normalised, without case and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def shingles(text: str) -> Hashes:
    """Sorted 64-bit hashes of a text's distinct word 3-shingles, at least one.

    A text of one or two words has one shingle; a text without words has itself.
    """
    found = words(text) or [f" {text.strip()} "]
    hashes = np.array([_word_hash(word) for word in found], dtype=np.uint64)
    if len(hashes) < 3:
        hashes = np.concatenate([hashes, np.zeros(3 - len(hashes), dtype=np.uint64)])
    factors = _random(3, "shingle")
    mixed = hashes[:-2] * factors[0] + hashes[1:-1] * factors[1] + hashes[2:] * factors[2]
    return np.unique(mixed ^ (mixed >> np.uint64(29)))


@lru_cache(maxsize=8)
def _random(count: int, name: str) -> Hashes:
    """Fixed odd 64-bit numbers."""
    stream = np.random.default_rng([_SEED, len(name), *name.encode()])
    numbers: Hashes = stream.integers(0, 2**64, size=count, dtype=np.uint64) | np.uint64(1)
    return numbers


def jaccard(a: str, b: str) -> float:
    """Share of the word 3-shingles of two texts that they have in common, in [0, 1]."""
    return _similarity(shingles(a), shingles(b))


def _similarity(a: Hashes, b: Hashes) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _signature(hashes: Hashes) -> Hashes:
    """MinHash signature: the least value under each of `_PERMUTATIONS` hash functions."""
    factors, offsets = _random(_PERMUTATIONS, "factor"), _random(_PERMUTATIONS, "offset")
    least = np.full(_PERMUTATIONS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(hashes), _CHUNK):
        values = hashes[start : start + _CHUNK, None] * factors + offsets
        np.minimum(least, values.min(axis=0), out=least)
    return least


def _rows_per_band(threshold: float) -> int:
    """Most rows a band may have so that a pair at the threshold is still proposed."""
    for rows in (16, 8, 5, 4, 3, 2):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return rows
    return 1


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise UsageError(
            f"similarity threshold is {threshold}", "Give a number above 0 and at most 1."
        )


def near_duplicate_groups(texts: Sequence[str], threshold: float = 0.8) -> list[int]:
    """Groups texts that are equal or near-duplicates, directly or through others.

    Args:
        texts: Any texts.
        threshold: Least Jaccard similarity of near-duplicates, in (0, 1].

    Returns:
        A group number for each text, counted from 0 in the order of first appearance.

    Raises:
        UsageError: The threshold is out of range.
    """
    _check_threshold(threshold)
    index_of: dict[str, int] = {}
    distinct = [index_of.setdefault(" ".join(text.split()), len(index_of)) for text in texts]
    sets = [shingles(text) for text in index_of]
    parents = list(range(len(sets)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    for i, j in _candidate_pairs([_signature(s) for s in sets], _rows_per_band(threshold)):
        a, b = root(i), root(j)
        if a != b and _are_similar(sets[i], sets[j], threshold):
            parents[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in distinct]


def _are_similar(a: Hashes, b: Hashes, threshold: float) -> bool:
    if min(len(a), len(b)) < threshold * max(len(a), len(b)):
        return False  # not even if one holds the other
    return _similarity(a, b) >= threshold


def _bands(signature: Hashes, rows: int) -> Iterator[bytes]:
    for start in range(0, _PERMUTATIONS - rows + 1, rows):
        yield start.to_bytes(2, "big") + signature[start : start + rows].tobytes()


def _candidate_pairs(signatures: Sequence[Hashes], rows: int) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) that share a band, each once."""
    buckets: dict[bytes, list[int]] = {}
    for later, signature in enumerate(signatures):
        earlier: dict[int, None] = {}
        for key in _bands(signature, rows):
            bucket = buckets.setdefault(key, [])
            earlier.update(dict.fromkeys(bucket[-_WINDOW:]))
            bucket.append(later)
        for other in earlier:
            yield other, later


def nearest(
    queries: Sequence[str], corpus: Sequence[str], threshold: float = 0.8
) -> list[tuple[int, float] | None]:
    """For each query, the most similar near-duplicate in another collection.

    Args:
        queries: Texts to look for.
        corpus: Texts to look in.
        threshold: Least Jaccard similarity, in (0, 1].

    Returns:
        For each query the index in `corpus` and the similarity, or None without a match. Among
        equally similar texts the first is taken.

    Raises:
        UsageError: The threshold is out of range.
    """
    _check_threshold(threshold)
    rows = _rows_per_band(threshold)
    sets = [shingles(text) for text in corpus]
    buckets: dict[bytes, list[int]] = {}
    for i, hashes in enumerate(sets):
        for key in _bands(_signature(hashes), rows):
            bucket = buckets.setdefault(key, [])
            if len(bucket) < _WINDOW:
                bucket.append(i)
    matches: list[tuple[int, float] | None] = []
    for query in queries:
        hashes = shingles(query)
        candidates = {i for key in _bands(_signature(hashes), rows) for i in buckets.get(key, ())}
        scored = [(_similarity(hashes, sets[i]), -i) for i in candidates]
        similarity, index = max(scored, default=(0.0, 0))
        matches.append((-index, similarity) if similarity >= threshold else None)
    return matches


class Buckets:
    """Members that share a key, in memory that grows by little more than the keys.

    Every member has the same number of keys; it is found by any of them. What one look-up reads
    is bounded: the last `_WINDOW` members of each bucket.

    Args:
        keys_per_member: How many keys each member has, at least 1.
    """

    def __init__(self, keys_per_member: int) -> None:
        self._keys_per_member = keys_per_member
        self._last: dict[bytes, int] = {}
        self._earlier = array("q")

    def __len__(self) -> int:
        return len(self._earlier) // self._keys_per_member

    def add(self, keys: Sequence[bytes]) -> int:
        """Takes in a member and gives its number, counted from 0."""
        for key in keys:
            slot = len(self._earlier)
            self._earlier.append(self._last.get(key, -1))
            self._last[key] = slot
        return len(self) - 1

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Numbers of members that have one of the keys, ascending."""
        found: set[int] = set()
        for key in keys:
            slot = self._last.get(key, -1)
            for _ in range(_WINDOW):
                if slot < 0:
                    break
                found.add(slot // self._keys_per_member)
                slot = self._earlier[slot]
        return sorted(found)


class NearDuplicateIndex:
    """Shingle sets taken in one by one, searched in near-linear time.

    Keeps the sets (8 bytes a shingle) and one bucket entry a band.

    Args:
        threshold: Least Jaccard similarity of near-duplicates, in (0, 1].

    Raises:
        UsageError: The threshold is out of range.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        _check_threshold(threshold)
        self._threshold = threshold
        self._rows = _rows_per_band(threshold)
        self._buckets = Buckets(_PERMUTATIONS // self._rows)
        self._values = array("Q")
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._buckets)

    def add(self, hashes: Hashes) -> int:
        """Takes in a set and gives its number, counted from 0.

        Args:
            hashes: Sorted distinct 64-bit hashes, at least one, as `shingles` gives them.
        """
        self._values.frombytes(np.ascontiguousarray(hashes).tobytes())
        self._ends.append(len(self._values))
        return self._buckets.add(self._keys(hashes))

    def find(self, hashes: Hashes) -> tuple[int, float] | None:
        """The most similar set from the threshold on, and its similarity; the first of equals."""
        best: tuple[int, float] | None = None
        for number in self._buckets.find(self._keys(hashes)):
            start, end = self._ends[number], self._ends[number + 1]
            other = np.array(self._values[start:end], dtype=np.uint64)
            if not _are_similar(hashes, other, self._threshold):
                continue
            similarity = _similarity(hashes, other)
            if best is None or similarity > best[1]:
                best = number, similarity
        return best

    def _keys(self, hashes: Hashes) -> list[bytes]:
        bands = _bands(_signature(hashes), self._rows)
        return [hashlib.blake2b(band, digest_size=8).digest() for band in bands]
