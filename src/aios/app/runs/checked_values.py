"""Checks of values from files of runs, which a user may have been handed by somebody else.

Takes a value as JSON gave it; says whether it is of the type that a field has, or gives it as that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 1e15  # numbers beyond it are none of ours
_MAX_TEXT = 500


def is_number(value: object) -> bool:
    """Whether a value is a number of a size that can be shown; NaN and truth values are none."""
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) <= LARGEST


def text_of(record: Mapping[str, Any], key: str) -> str:
    """A text of a record, cut where it is long.

    Raises:
        KeyError: It has none of that name.
        ValueError: It is no text.
    """
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value[:_MAX_TEXT]


def number_of(record: Mapping[str, Any], key: str) -> float:
    """A number of a record.

    Raises:
        KeyError: It has none of that name.
        ValueError: It is no number (`is_number`).
    """
    value = record[key]
    if not is_number(value):
        raise ValueError(f"{key} is no number")
    return float(value)


def number_or_none(record: Mapping[str, Any], key: str) -> float | None:
    """A number of a record, or None where that stands there; raises as `number_of`."""
    return None if record[key] is None else number_of(record, key)


def count_of(record: Mapping[str, Any], key: str) -> int:
    """A whole number from 0 of a record.

    Raises:
        KeyError: It has none of that name.
        ValueError: It is no such number.
    """
    value = record[key]
    if not isinstance(value, int) or not is_number(value) or value < 0:
        raise ValueError(f"{key} is no count")
    return value


@cache
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    return get_type_hints(kind)


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of the type that an annotation says, all through.

    Knows what records of runs are made of: dataclasses, ``tuple[X, ...]``,
    ``Mapping[str, X]``, unions, literals, texts, truth values and numbers (`is_number`).

    Raises:
        TypeError: The annotation is of another kind.
    """
    if hint is float:
        return is_number(value)
    if hint is int:
        return type(value) is int and abs(value) < 2**64  # seeds are large
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    origin, inner = _parts(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple and inner[1:] == (...,):
        return isinstance(value, tuple) and all(fits(item, inner[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and fits(item, inner[1]) for key, item in value.items()
        )
    if isinstance(hint, type) and is_dataclass(hint):
        hints = _hints(hint)
        return isinstance(value, hint) and all(
            fits(getattr(value, one.name), hints[one.name]) for one in fields(hint)
        )
    raise TypeError(f"cannot check values of {hint!r}")
