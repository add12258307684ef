"""Feature flags: switches for code that is new, each with an owner and an end.

A flag is not a setting. A setting (``seal.enabled``) stays and says what the user wants; a flag
guards a part of the code until it has proved itself, and is then removed. The config section
``features`` holds the user's values; a flag that is not named there has its default.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from aios.core.errors import ConfigError

ENABLE_SEAL_SELF_EDITS = True
"""Default of the flag ``enable_seal_self_edits``: experts are trained on self-edits."""


@dataclass(frozen=True, slots=True)
class FeatureFlag:
    """A switch for a new part of the code.

    Attributes:
        name: Its key below ``features``.
        default: Whether it is on where the user says nothing.
        owner: The package that reads it and that removes it.
        description: What is on when it is on, and what happens instead when it is off.
        remove_when: The condition under which the flag goes and its code stays.
    """

    name: str
    default: bool
    owner: str
    description: str
    remove_when: str


FLAGS: tuple[FeatureFlag, ...] = (
    FeatureFlag(
        name="enable_seal_self_edits",
        default=ENABLE_SEAL_SELF_EDITS,
        owner="aios.app.experts",
        description=(
            "Experts are trained on self-edits too; off: on the passages alone, whatever "
            "seal.enabled says"
        ),
        remove_when=(
            "two releases in a row have shown lower validation loss with self-edits than "
            "without; seal.enabled alone decides from then on"
        ),
    ),
)


def is_enabled(name: str, features: Mapping[str, bool]) -> bool:
    """Tells whether a feature is on.

    Args:
        name: The flag's name, as in `FLAGS`.
        features: The config's ``features`` section.

    Returns:
        The user's value, or the flag's default where the user gave none.

    Raises:
        ConfigError: No such flag.
    """
    for flag in FLAGS:
        if flag.name == name:
            return features.get(name, flag.default)
    known = [flag.name for flag in FLAGS]
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        f"features.{name}: no such feature flag",
        f"Did you mean {near[0]}?" if near else f"The flags are: {', '.join(known)}.",
    )
