"""JSON values to frozen types and back: every field must be there, be valid, and be a known one.

The annotations of a dataclass say what a file holds::

    @dataclass(frozen=True, kw_only=True)
    class Bin:
        __pydantic_config__ = STRICT
        confidence: Share
        n: Count

A field without a default must be in the file. One with a default may be missing, and is not written
when it has that value. A final underscore (``from_``) is not part of the field's name in the file.
``__post_init__`` checks what several fields say together, and raises a ``ValueError`` that begins
with a field's name. pydantic is imported when the first file is read.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from fieldmark.errors import RunError
from fieldmark.names import shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_MOST = 2**53
"""Largest whole number: all JSON readers agree on it, and as a float it is still exact."""
_LARGEST = 1e300
"""Largest number, small enough that a sum of some of them is finite, too."""


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as pydantic's schema."""

    words: str
    schema: Callable[[Any], Any]
    """Function from the module ``pydantic_core.core_schema`` to a schema."""

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> Any:
        """Return the schema; pydantic calls this."""
        from pydantic_core import core_schema

        return core_schema.custom_error_schema(
            self.schema(core_schema),
            custom_error_type="kind",
            custom_error_message=f"must be {self.words}",
        )


def _float(schema: Any, low: float = -_LARGEST, high: float = _LARGEST) -> Any:
    return schema.float_schema(strict=True, allow_inf_nan=False, ge=low, le=high)


def _figure(schema: Any) -> Any:
    return schema.no_info_after_validator_function(
        lambda value: math.nan if value is None else value, schema.nullable_schema(_float(schema))
    )


def _base64(schema: Any) -> Any:
    return schema.no_info_after_validator_function(_decodable, schema.is_instance_schema(str))


def _decodable(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    return text


def one_of(*values: str) -> Kind:
    """Make the kind of a text that is one of ``values``."""
    words = f"{', '.join(values[:-1])} or {values[-1]}"
    return Kind(words, lambda schema: schema.literal_schema(list(values)))


Text = Annotated[str, Kind("a text", lambda schema: schema.is_instance_schema(str))]
"""Any text, also one with lone surrogates: file names are what they are."""
Count = Annotated[
    int, Kind("a whole number from 0 on", lambda s: s.int_schema(strict=True, ge=0, le=_MOST))
]
Positive = Annotated[
    int, Kind("a whole number from 1 on", lambda s: s.int_schema(strict=True, ge=1, le=_MOST))
]
Number = Annotated[float, Kind("a number", _float)]
Share = Annotated[float, Kind("a number from 0 to 1", lambda s: _float(s, 0.0, 1.0))]
Amount = Annotated[float, Kind("a number from 0 on", lambda s: _float(s, 0.0))]
Figure = Annotated[float, Kind("a number or null", _figure)]
"""A number; NaN, null in the file, where there is none."""
Flag = Annotated[bool, Kind("true or false", lambda s: s.bool_schema(strict=True))]
Base64 = Annotated[str, Kind("base64", _base64)]
Split = Annotated[str, one_of("train", "val", "test")]


def _key(name: str) -> str:
    """A field's name in a file: some are words of Python."""
    return name.removesuffix("_")


STRICT: dict[str, Any] = {"extra": "forbid", "alias_generator": _key}
"""pydantic's settings for every type that is read from a file."""


def read_typed(kind: type[T], value: Mapping[str, Any], *, where: str, remedy: str) -> T:
    """Make a value of a type from what a JSON file held.

    Args:
        kind: A dataclass; see the module.
        value: The JSON object.
        where: The file, for messages.
        remedy: What to do about a damaged one, for messages.

    Raises:
        RunError: naming the file and the field.
    """
    from pydantic import ValidationError

    try:
        found: T = _adapter(cast(Any, kind)).validate_python(value)
    except ValidationError as error:
        raise RunError(f"{where}: {_first(error)}; {remedy}") from None
    return found


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks a type; making it takes milliseconds."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


_JSON_NAMES = {
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "dataclass_type": "must be an object",
    "too_long": "is too long",
    "too_short": "is too short",
}


def _first(error: Any) -> str:
    """The first fault in words, with the field's path."""
    found = error.errors(include_url=False)[0]
    path = [shown(str(part)) for part in found["loc"] if part != "[key]"]
    field, fault = ".".join(path), found["type"]
    if fault == "missing" and isinstance(found["loc"][-1], str):
        return f"{'.'.join(path[:-1]) or 'it'} lacks {path[-1]}"
    if fault == "missing":
        return f"{'.'.join(path[:-1])} is too short"
    if fault == "unexpected_keyword_argument":
        return f"{field} is unknown"
    if fault == "value_error":
        return ".".join([*path, str(found["ctx"]["error"])])
    words = _JSON_NAMES.get(fault, found["msg"])
    if words.startswith("is "):
        return f"{field} {words}"
    return f"{field} is {reprlib.repr(found['input'])}, but {words}"


def plain(value: Any) -> Any:
    """A typed value as JSON's own: objects, lists, texts, numbers."""
    if dataclasses.is_dataclass(value):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {
            _key(f.name): plain(content)
            for f, content in fields
            if f.default is dataclasses.MISSING or content != f.default
        }
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
