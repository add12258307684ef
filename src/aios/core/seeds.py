"""Seeds derived from names, so that no random stream depends on the order of work.

Every random choice in AI-OS takes its seed from ``derive(run_seed, *keys)``. Two streams with
different keys are independent; the same keys give the same stream in any process, on any
machine, and whatever else has been drawn before.
"""

from __future__ import annotations

import hashlib

_BITS = 63  # fits a signed 64-bit integer, which torch.Generator.manual_seed and numpy accept


def derive(seed: int, *keys: str | int) -> int:
    """Derives the seed of a named stream.

    Args:
        seed: The run's seed.
        *keys: What the stream is for, e.g. ``("generate", passage_id, candidate)``. The type of
            a key counts: ``1`` and ``"1"`` give different seeds.

    Returns:
        An integer in ``[0, 2**63)``.
    """
    text = "\x1f".join([str(seed), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - _BITS)
