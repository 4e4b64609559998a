"""Spec strings: ``cifar_resnet(depth=20)``, ``pad_crop(4)|flip_lr``. Literals only, never
evaluated.

A spec names an entry of a table, and its arguments. The arguments are checked against the entry's
signature; for an unknown name the error suggests the nearest one.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from fieldmark.errors import ConfigError, did_you_mean

T = TypeVar("T")

_FORM = re.compile(r"\s*([A-Za-z_][\w./:@+\-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_MAX_LENGTH = 2000


@dataclass(frozen=True)
class Spec:
    """A name with positional and keyword arguments."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Write the spec so that parsing it gives the same spec."""
        inside = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs]
        return f"{self.name}({', '.join(inside)})" if inside else self.name


def parse(text: str | Spec, *, what: str) -> Spec:
    """Parse one spec; a parsed one is returned as it is.

    Raises:
        ConfigError: if it is not ``name`` or ``name(literal, key=literal)``.
    """
    return text if isinstance(text, Spec) else _parse(text, what)


def _parse(text: str, what: str) -> Spec:
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"{what}: {len(text)} characters; at most {_MAX_LENGTH} are read")
    form = _FORM.fullmatch(text)
    if form is None:
        raise ConfigError(f"{what} {text!r} is not of the form name or name(value, key=value)")
    name, inside = form.group(1), form.group(2)
    if inside is None:
        return Spec(name)
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not one call")  # noqa: TRY301, TRY004
        if any(isinstance(a, ast.Starred) for a in call.args):
            raise ValueError("'*' is not taken")  # noqa: TRY301
        args = tuple(_literal(a) for a in call.args)
        kwargs: list[tuple[str, Any]] = []
        for keyword in call.keywords:
            if keyword.arg is None:
                raise ValueError("'**' is not taken")  # noqa: TRY301
            if any(keyword.arg == name for name, _ in kwargs):
                raise ValueError(f"{keyword.arg} is given twice")  # noqa: TRY301
            kwargs.append((keyword.arg, _literal(keyword.value)))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"{what} {text!r}: arguments must be plain values such as 4, 0.5, True, 'text' "
            f"or (1, 2) ({error.args[0] if error.args else type(error).__name__})"
        ) from None
    return Spec(name, args, tuple(kwargs))


def _literal(node: ast.expr) -> Any:
    """Evaluate a literal whose repr is the same literal again: not ``1e999``, which is inf."""
    try:
        value = ast.literal_eval(node)
        ast.literal_eval(repr(value))
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is not") from None
    return value


def parse_pipe(text: str | tuple[Spec, ...], *, what: str) -> tuple[Spec, ...]:
    """Parse ``a|b(2)|c`` in order; an empty text or ``none`` is an empty pipe.

    A parsed one is returned as it is.
    """
    if isinstance(text, tuple):
        return text
    if text.strip() in ("", "none"):
        return ()
    parts, depth, quote, start, escaped = [], 0, "", 0, False
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "|" and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return tuple(parse(part, what=what) for part in parts)


def lookup(spec: Spec, table: Mapping[str, T], *, what: str, listing: str = "") -> T:
    """Find the table's entry; or, where it has none of the name, that of an installed plugin.

    Raises:
        ConfigError: if there is none; names the nearest entry, and ``listing`` or all entries.
    """
    if spec.name in table:
        return table[spec.name]
    from fieldmark import plugins  # what is built in needs none

    found = plugins.find(what, spec.name, built_in=table)
    if found is not None:
        return cast("T", found)
    names = [*table, *plugins.names(what)]
    known = listing or "known: " + ", ".join(names)
    raise ConfigError(unknown(spec.name, names, what=what, known=known))


def unknown(name: str, names: Iterable[str], *, what: str, known: str) -> str:
    """What to say of a name that neither a table nor a plugin has."""
    from fieldmark import plugins

    if plugins.is_handed(name):
        keyword = what + "s" * (what in ("callback", "metric"))
        return (
            f"{what} {name!r} is an object that a Python program handed over, which its name "
            "cannot bring back; hand it over again in Python, to fieldmark.train, resume or load "
            f"({keyword}=...)"
        )
    return f"no {what} {name!r}{did_you_mean(name, names)} ({known}{plugins.troubles()})"


def bind(
    spec: Spec, function: Callable[..., Any], *, what: str, given: int = 0
) -> inspect.BoundArguments:
    """Check the spec's arguments against the function's signature.

    The first ``given`` parameters come from the caller; the spec cannot set them.

    Raises:
        ConfigError: if they do not fit; names the argument, and what is accepted.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[given:]
    names = [p.name for p in parameters]
    try:
        bound = signature.replace(parameters=parameters).bind(*spec.args, **dict(spec.kwargs))
    except TypeError as error:
        unknown = next((k for k, _ in spec.kwargs if k not in names), None)
        hint = did_you_mean(unknown, names) if unknown else ""
        takes = ", ".join(_describe(p) for p in parameters) or "no arguments"
        raise ConfigError(
            f"{what} {str(spec)!r}: {error}{hint} ({spec.name} takes {takes})"
        ) from None
    for name, value in bound.arguments.items():
        _check_type(spec, signature.parameters[name], value, what)
    return bound


def call(spec: Spec, function: Callable[..., T], *given: Any, what: str) -> T:
    """Call the function with the caller's arguments, then the spec's.

    Raises:
        ConfigError: if the arguments do not fit, or the function refuses them with a ValueError.
    """
    bound = bind(spec, function, what=what, given=len(given))
    try:
        return function(*given, *bound.args, **bound.kwargs)
    except ValueError as error:
        raise ConfigError(f"{what} {str(spec)!r}: {error}") from None


def _describe(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
}


def _check_type(spec: Spec, parameter: inspect.Parameter, value: Any, what: str) -> None:
    """Check a scalar against its annotation, so that a text for a number is an error here."""
    annotation = str(parameter.annotation).removeprefix("<class '").removesuffix("'>")
    wanted = _TYPES.get(annotation)
    if wanted is None:
        return
    wrong_bool = isinstance(value, bool) and annotation != "bool"
    if wrong_bool or not isinstance(value, wanted):
        raise ConfigError(
            f"{what} {str(spec)!r}: {parameter.name} is {value!r}, "
            f"but must be {_ARTICLES[annotation]}"
        )


_ARTICLES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "a text in quotes",
}
