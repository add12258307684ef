"""Selection: which candidates of a round the generator learns from (ReST-EM's E-step).

Takes tried passages; gives them back with `Tried.kept` set. Two rules:

* ``threshold``: those that were rewarded, that is, beat their baseline by more than the margin
  (ReST-EM, Singh et al. 2023, arXiv 2312.06585: a binary reward and everything that has it). A
  passage may keep none.
* ``best_of_k``: the best of each passage, whatever the reward says; this is what the release of
  SEAL (Zweiger et al. 2025, arXiv 2506.10943) does. A passage keeps one even where all of them
  are worse than the baseline.

How many of a passage are kept is limited, one by default, so that easy passages do not crowd
out the others (ReST-EM itself keeps up to 10 solutions of a problem).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from aios.core.restem import Tried, TriedPassage

_TIE_DIGITS = 12  # improvements are compared after rounding: (0.1 + 0.7) / 2 ties with 0.4


def choose(
    passages: Sequence[TriedPassage],
    keep: Literal["threshold", "best_of_k"],
    kept_per_passage: int,
) -> list[TriedPassage]:
    """Marks the candidates that are kept, and only those.

    Args:
        passages: Passages with their candidates; marks that they have are not looked at.
        keep: The rule (module's head).
        kept_per_passage: Most candidates of a passage, at least 1; the greatest improvements
            first, on ties the earlier candidate.

    Returns:
        All passages in their order, also those that keep none. A candidate without an
        improvement, such as one whose trials all failed, is never kept.

    Raises:
        ValueError: `keep` is no rule, or `kept_per_passage` is below 1.
    """
    if keep not in ("threshold", "best_of_k") or kept_per_passage < 1:
        raise ValueError(f"keep {keep!r} with {kept_per_passage} a passage is no rule")
    chosen = []
    for passage in passages:
        able = [
            (-round(one.improvement, _TIE_DIGITS), number)
            for number, one in enumerate(passage.candidates)
            if one.improvement is not None and (keep == "best_of_k" or one.rewarded)
        ]
        best = {number for _, number in sorted(able)[:kept_per_passage]}
        chosen.append(replace(passage, candidates=_marked(passage.candidates, best)))
    return chosen


def _marked(candidates: Sequence[Tried], best: set[int]) -> tuple[Tried, ...]:
    return tuple(replace(one, kept=number in best) for number, one in enumerate(candidates))
