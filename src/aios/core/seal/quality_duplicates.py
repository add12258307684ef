"""Duplicates and near duplicates: the same text, nearly the same words, nearly the same meaning.

Takes items or whole edits one after another; says which earlier one each repeats. Three stages,
the cheap ones first: equal words (case and punctuation aside); Jaccard similarity of word
shingles; and, where an embedding model is at hand, cosine similarity of embeddings. Embeddings
hardly tell a number or a name from another one, so only texts with the same numbers and the same
answers are compared by them.

`KnownTexts` compares with everything before: right for the few candidates of a passage.
`CorpusDuplicates` does the same for the edits of a whole file in near-linear time: a set of
digests, MinHash (`aios.core.data.near_duplicates`), and random hyperplanes for embeddings
(Charikar 2002). A pair that is just at a threshold may be missed by the last two.

Deviation: SEAL (arXiv 2506.10943) trains on duplicates as they come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aios.core.data import near_duplicates
from aios.core.data.near_duplicates import Buckets, Hashes, NearDuplicateIndex
from aios.core.seal import quality_signals as signals
from aios.core.seal.completion_text import normalise
from aios.core.seal.quality_rules import Verdict
from aios.core.types import SelfEdit

Vectors = NDArray[np.float32]
Embedder = Callable[[Sequence[str]], Vectors]
"""Gives one vector of length 1 for each text, shape (texts, dimensions)."""

_BITS, _BANDS = 16, 24
_SEED = 0xE3BED
_SHOWN = 60


class Comparison(NamedTuple):
    """A text beside the earlier ones.

    Attributes:
        similarity: Jaccard similarity to the nearest earlier one; 0 without any.
        verdict: Why it counts as a duplicate, or None.
    """

    similarity: float
    verdict: Verdict | None


@dataclass(slots=True)
class _Known:
    items: Sequence[str]
    text: str
    plain: str
    shingles: frozenset[tuple[str, ...]]
    specifics: tuple[str, ...]
    vector: Vectors | None = None


class KnownTexts:
    """Texts kept so far, of which there are few, to compare the next one with.

    Args:
        threshold: Jaccard similarity from which two are near duplicates.
        embedder: Embeds texts; None: words alone are compared.
        embedding_threshold: Cosine similarity from which two are near duplicates.
    """

    def __init__(
        self, threshold: float, embedder: Embedder | None = None, embedding_threshold: float = 0.97
    ) -> None:
        self._threshold = threshold
        self._embedder = embedder
        self._embedding_threshold = embedding_threshold
        self._known: list[_Known] = []
        self._latest: _Known | None = None

    def compare(self, items: Sequence[str]) -> Comparison:
        """Compares a text, given as its items, with all that were kept."""
        new = self._latest = _describe(items)
        similarity = 0.0
        verdict = None
        for known in self._known:
            if known.plain == new.plain:
                return Comparison(1.0, Verdict("duplicate", f"the same as {known.text[:_SHOWN]!r}"))
            shared = signals.jaccard(new.shingles, known.shingles)
            similarity = max(similarity, shared)
            if verdict is None and shared >= self._threshold:
                detail = f"{shared:.2f} like {known.text[:_SHOWN]!r}"
                verdict = Verdict("near_duplicate", detail)
        return Comparison(similarity, verdict or self._judge_meaning(new))

    def keep(self) -> None:
        """Keeps the text that was compared last."""
        if self._latest is not None:
            self._known.append(self._latest)
            self._latest = None

    def _judge_meaning(self, new: _Known) -> Verdict | None:
        alike = [known for known in self._known if known.specifics == new.specifics]
        if self._embedder is None or not alike:
            return None
        for text in (new, *alike):
            if text.vector is None:
                text.vector = embed(self._embedder, text.items)
        for known in alike:
            cosine = float(np.dot(_vector(new), _vector(known)))
            if cosine >= self._embedding_threshold:
                detail = f"{cosine:.2f} like {known.text[:_SHOWN]!r} in meaning"
                return Verdict("near_duplicate", detail)
        return None


@dataclass(slots=True)
class _Entry:
    items: tuple[str, ...]
    digest: bytes
    hashes: Hashes
    specifics: tuple[str, ...]
    vector: Vectors | None = None


class CorpusDuplicates:
    """The edits of a whole file, taken in order, to find those that repeat an earlier one.

    Memory grows by about 2 kB and 8 bytes a word for each edit kept, with embeddings by 4 kB more
    (measured by ``benchmarks/quality_filter.py``); nothing of the texts is kept.

    Args:
        threshold: Jaccard similarity from which two are near duplicates.
        embedder: Embeds texts; None: words alone are compared.
        embedding_threshold: Cosine similarity from which two are near duplicates.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        embedder: Embedder | None = None,
        embedding_threshold: float = 0.97,
    ) -> None:
        self._digests: dict[bytes, int] = {}
        self._index = NearDuplicateIndex(threshold)
        self._embedder = embedder
        self._embedding_threshold = embedding_threshold
        self._meanings = _Meanings()
        self._latest: _Entry | None = None

    def __len__(self) -> int:
        return len(self._index)

    def judge(self, edit: SelfEdit) -> Verdict | None:
        """Why an edit counts as a duplicate of an earlier one; None where it does not.

        The detail names that one by its number among the edits kept, from 1: its row in the file.
        """
        new = self._describe(edit)
        same = self._digests.get(new.digest)
        if same is not None:
            return Verdict("duplicate", f"the same as edit {same + 1} of the file")
        near = self._index.find(new.hashes)
        if near is not None:
            return Verdict("near_duplicate", f"{near[1]:.2f} like edit {near[0] + 1} of the file")
        alike = self._meanings.find(self._vector(new), new.specifics, self._embedding_threshold)
        if alike is not None:
            detail = f"{alike[1]:.2f} like edit {alike[0] + 1} of the file in meaning"
            return Verdict("near_duplicate", detail)
        return None

    def add(self, edit: SelfEdit) -> None:
        """Takes in an edit that is kept; also those of an earlier run that is gone on with."""
        new = self._describe(edit)
        self._digests.setdefault(new.digest, len(self))
        self._index.add(new.hashes)
        self._meanings.add(self._vector(new), new.specifics)
        self._latest = None

    def _describe(self, edit: SelfEdit) -> _Entry:
        """What an edit is compared by; that of the edit judged last is kept until it is added."""
        if self._latest is None or self._latest.items is not edit.items:
            digest = _digest(normalise(edit.text))
            self._latest = _Entry(
                edit.items, digest, edit_hashes(edit.items), _specifics(edit.items)
            )
        return self._latest

    def _vector(self, entry: _Entry) -> Vectors | None:
        if self._embedder is not None and entry.vector is None:
            entry.vector = embed(self._embedder, entry.items or ("",))
        return entry.vector


class _Meanings:
    """Embeddings by which side of random hyperplanes they are on, in bands of `_BITS` planes.

    Two vectors share one of the bands in 999 of 1000 cases at a cosine of 0.97, and
    in 88 of 100 at 0.9.
    """

    def __init__(self) -> None:
        self._buckets = Buckets(_BANDS)
        self._vectors: list[NDArray[np.float16]] = []

    def add(self, vector: Vectors | None, specifics: tuple[str, ...]) -> None:
        if vector is not None:
            self._buckets.add(self._keys(vector, specifics))
            self._vectors.append(vector.astype(np.float16))

    def find(
        self, vector: Vectors | None, specifics: tuple[str, ...], threshold: float
    ) -> tuple[int, float] | None:
        if vector is None:
            return None
        numbers = self._buckets.find(self._keys(vector, specifics))
        found = [(float(np.dot(vector, self._vectors[n].astype(np.float32))), -n) for n in numbers]
        cosine, number = max(found, default=(0.0, 0))
        return (-number, cosine) if found and cosine >= threshold else None

    def _keys(self, vector: Vectors, specifics: tuple[str, ...]) -> list[bytes]:
        sides = (_planes(len(vector)) @ vector > 0).reshape(_BANDS, _BITS)
        said = _digest("\n".join(specifics))[:4]
        return [
            bytes([band]) + np.packbits(bits).tobytes() + said for band, bits in enumerate(sides)
        ]


@lru_cache(maxsize=4)
def _planes(dimensions: int) -> Vectors:
    normal = np.random.default_rng(_SEED).standard_normal((_BANDS * _BITS, dimensions))
    return normal.astype(np.float32)


def embed(embedder: Embedder, items: Sequence[str]) -> Vectors:
    """One vector of length 1 for some items: their mean direction, shape (dimensions,)."""
    mean: Vectors = embedder([signals.content(item) for item in items]).mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def edit_hashes(items: Sequence[str]) -> Hashes:
    """Sorted distinct shingle hashes of items; those of a question carry its answer.

    So blanks in two places of one sentence have none in common, as in
    `quality_signals.item_shingles`.
    """
    hashes = []
    for item in items or ("",):
        pair = signals.qa_parts(item)
        if pair is None:
            hashes.append(near_duplicates.shingles(item))
        else:
            answer = np.frombuffer(_digest(normalise(pair.answer))[:8], dtype=np.uint64)
            hashes.append(near_duplicates.shingles(pair.question) ^ answer)
    return np.unique(np.concatenate(hashes))


def _describe(items: Sequence[str]) -> _Known:
    text = "\n".join(items)
    shingles = frozenset[tuple[str, ...]]().union(*(signals.item_shingles(item) for item in items))
    return _Known(items, text, normalise(text), shingles, _specifics(items))


def _specifics(items: Sequence[str]) -> tuple[str, ...]:
    """Answers and numbers of some items, in a fixed order."""
    pairs = [pair for item in items if (pair := signals.qa_parts(item)) is not None]
    answers = sorted(normalise(pair.answer) for pair in pairs)
    numbers = sorted(number for item in items for number in signals.numbers(signals.content(item)))
    return (*answers, *numbers)


def _vector(known: _Known) -> Vectors:
    assert known.vector is not None
    return known.vector


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
