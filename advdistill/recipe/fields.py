"""What configs are made of: the strict base class and the field types of this field of work. No torch here."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema


class Config(BaseModel):
    """Settings of one component: immutable, unknown keys rejected, every field documented by the string below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


def parse_distance(value: Any) -> float:
    """A distance in pixel units: `"8/255"`, `"0.5/255"` or a number in [0, 1] units.

    Raises:
        ValueError: not a number, negative or not finite.
    """
    if isinstance(value, str):
        top, slash, bottom = value.partition("/")
        try:
            number = float(top) / (float(bottom) if slash else 1.0)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is not a distance; write it like 8/255") from None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    else:
        raise ValueError(f"{value!r} is not a distance; write it like 8/255")
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is not a distance: it must be finite and at least 0")
    return number


def format_distance(value: float) -> str:
    """The shortest spelling that parses back to the same float, in 1/255 where one exists."""
    levels = Fraction(value * 255).limit_denominator(1000)
    text = f"{float(levels):g}/255"
    return text if parse_distance(text) == value else repr(value)


_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_size(value: Any) -> int:
    """A number of bytes: `"2 GiB"`, `"500MiB"`, or a whole number.

    Raises:
        ValueError: not such a number, or negative.
    """
    written = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?i?B?)\s*", str(value))
    if isinstance(value, bool) or not written or written[2] not in _UNITS:
        raise ValueError(f"{value!r} is no number of bytes; write it like 2 GiB")
    try:
        return int(float(written[1]) * _UNITS[written[2]])
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is no number of bytes; write it like 2 GiB") from None


def format_size(value: int) -> str:
    """The shortest spelling that parses back to the same number of bytes."""
    unit = max((unit for unit, size in _UNITS.items() if value % size == 0), key=_UNITS.__getitem__)
    return f"{value // _UNITS[unit]} {unit}" if value and unit not in ("", "B") else str(value)


Bytes = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^\s*[0-9.]+\s*(B|[KMGT]iB)?\s*$"},
            ]
        }
    ),
]
"""A number of bytes, written `2 GiB` in recipes."""

PixelDistance = Annotated[
    float,
    BeforeValidator(parse_distance),
    PlainSerializer(format_distance),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^[0-9.eE+-]+(/[0-9.eE+-]+)?$"}]}
    ),
]
"""A distance on the [0, 1] pixel scale, written `8/255` in recipes."""
