"""Spec strings: literals only, checked against signatures, and round trips."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.errors import ConfigError
from fieldmark.settings.spec import Spec, bind, call, lookup, parse, parse_pipe

SCALARS = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(max_size=12),
    st.binary(max_size=6),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.integers(0, 9), inner, max_size=3),
    ),
    max_leaves=6,
)
SPECS = st.builds(
    Spec,
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_./:@+\-]{0,12}", fullmatch=True),
    st.lists(VALUES, max_size=3).map(tuple),
    st.dictionaries(st.from_regex(r"x[a-z_]{0,6}", fullmatch=True), VALUES, max_size=3).map(
        lambda d: tuple(d.items())
    ),
)


def short(spec: Spec) -> bool:
    return len(str(spec)) < 1000


@given(SPECS.filter(short))
def test_text_of_a_spec_parses_to_the_same_spec(spec: Spec) -> None:
    assert parse(str(spec), what="x") == spec


@given(st.lists(SPECS.filter(lambda s: len(str(s)) < 300), min_size=1, max_size=3))
def test_pipes_divide_only_between_specs(specs: list[Spec]) -> None:
    text = "|".join(map(str, specs))
    if text.strip() != "none":
        assert parse_pipe(text, what="x") == tuple(specs)


@given(st.text(max_size=60))
def test_any_text_is_a_spec_or_a_config_error(text: str) -> None:
    for function in (parse, parse_pipe):
        with contextlib.suppress(ConfigError):
            function(text, what="x")


def test_forms() -> None:
    assert parse("a", what="x") == Spec("a")
    assert parse(" timm/resnet50.a1_in1k ", what="x") == Spec("timm/resnet50.a1_in1k")
    assert parse("a()", what="x") == Spec("a")
    assert parse("a(1, (2, 3), k='v', d={80: 0.1})", what="x") == Spec(
        "a", (1, (2, 3)), (("k", "v"), ("d", {80: 0.1}))
    )
    assert parse("a(-1, +2.5)", what="x").args == (-1, 2.5)
    assert str(Spec("a", (1,), (("b", "c"),))) == "a(1, b='c')"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1a",
        "a(",
        "a)",
        "a(1)b",
        "a b",
        "a(b)",
        "a(b())",
        "a(__import__('os').system('true'))",
        "a(x=open('f'))",
        "a(b.c)",
        "a((1).real)",
        "a(f'{1}')",
        "a(f'{x}')",
        "a(lambda: 1)",
        "a([i for i in (1, 2)])",
        "a(x:=1)",
        "a(*[1, 2])",
        "a(**{'b': 1})",
        "a(1 if 1 else 2)",
        "a([1][0])",
        "a(1)(2)",
        "a(1), b(2)",
        "a(1) + b(2)",
        "a(1 + 1)",
        "a('x' * 9)",
        "a(2 ** 9)",
        "a(not 1)",
        "a(x=1, x=2)",
        "a(x=1, 2)",
        "a({[]: 1})",
        "a(1e999)",
        "a([1, -1e999])",
        "a('\\d' + 1)",
        "a(\x00)",
        "a(" + "(" * 900 + ")" * 900 + ")",
        "a(" + "[" * 900 + "]" * 900 + ")",
        "a(" + "-" * 1900 + "1)",
        "a(" + "1" * 3000 + ")",
    ],
)
def test_only_plain_values_are_taken(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, what="model")
    assert "model" in str(caught.value)
    assert " at 0x" not in str(caught.value)


def test_the_message_names_what_is_not_plain() -> None:
    with pytest.raises(ConfigError, match=re.escape("(val_loss is not)")):
        parse("early_stopping(monitor=val_loss)", what="callbacks")


@pytest.mark.parametrize("text", ["", "none", "  none ", "\n"])
def test_empty_pipes(text: str) -> None:
    assert parse_pipe(text, what="x") == ()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a|b", ["a", "b"]),
        ("a(4)|b|c(x=1)", ["a", "b", "c"]),
        ("a('|')|b", ["a", "b"]),
        ('a("\'|")|b', ["a", "b"]),
        (r"a('it\'s')|b", ["a", "b"]),
        (r"a('\\')|b", ["a", "b"]),
        ("a(['|', ('|',)])|b", ["a", "b"]),
        ("a({'|': 1})|b('x|y')", ["a", "b"]),
    ],
)
def test_pipes(text: str, names: list[str]) -> None:
    assert [s.name for s in parse_pipe(text, what="x")] == names


@pytest.mark.parametrize("text", ["a||b", "|a", "a|", "|", "a(1|2)", "none|a|"])
def test_broken_pipes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_pipe(text, what="x")


def sample(
    given: int, width: int = 4, rate: float = 0.5, flag: bool = False, text: str = ""
) -> str:
    if width == 13:
        raise ValueError("width is 13")
    return f"{given} {width} {rate} {flag} {text}"


def needs(count: int) -> int:
    return count


def ask(text: str, function: Callable[..., object] = sample, *extra: object) -> object:
    return call(parse(text, what="model"), function, *(extra or (7,)), what="model")


def test_call_gives_the_callers_arguments_first() -> None:
    assert ask("sample(5, rate=1, flag=True, text='t')") == "7 5 1 True t"
    assert ask("sample") == "7 4 0.5 False "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sample(widht=3)", "did you mean 'width'"),
        ("sample(given=3)", "unexpected keyword"),
        ("sample(1, 2.0, True, 't', 5)", "too many positional"),
        ("sample(1, width=2)", "multiple values"),
        ("sample('4')", "width is '4', but must be a whole number"),
        ("sample(4.0)", "must be a whole number"),
        ("sample(True)", "must be a whole number"),
        ("sample(None)", "must be a whole number"),
        ("sample(rate='x')", "rate is 'x', but must be a number"),
        ("sample(rate=False)", "must be a number"),
        ("sample(flag=1)", "must be True or False"),
        ("sample(text=1)", "must be a text in quotes"),
        ("sample(13)", "width is 13"),
    ],
)
def test_arguments_are_checked(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        ask(text)
    assert text.partition("(")[0] in str(caught.value)


def test_a_missing_argument_says_what_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"missing.*'count'.*needs takes count"):
        bind(Spec("needs"), needs, what="op")


def test_defaults_are_not_forced_on_the_function() -> None:
    assert bind(Spec("sample", (5,)), sample, what="op", given=1).arguments == {"width": 5}


def test_lookup_suggests_and_lists() -> None:
    table = {"cosine": 1, "constant": 2}
    assert lookup(Spec("cosine"), table, what="schedule") == 1
    with pytest.raises(ConfigError, match=r"no schedule 'cosin'; did you mean 'cosine'.*constant"):
        lookup(Spec("cosin"), table, what="schedule")
    with pytest.raises(ConfigError) as caught:
        lookup(Spec("zzzz"), table, what="schedule", listing="see there")
    assert "did you mean" not in str(caught.value)
    assert "see there" in str(caught.value)
