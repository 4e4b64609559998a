"""Schedules against their formulae and torch's own schedulers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.errors import ConfigError
from fieldmark.fit.schedules import SCHEDULES, Length, build, check_stages, landed, size_at
from fieldmark.settings.resolved import Landing, Stage, landings, stages

LENGTH = Length(total_steps=200, steps_per_epoch=10)


def torchs(make: Callable[[torch.optim.Optimizer], object], steps: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()  # type: ignore[attr-defined]
    return rates


def ours(text: str, steps: int = 200, length: Length = LENGTH, warmup: int = 0) -> list[float]:
    schedule = build(text, length=length, warmup_steps=warmup)
    return [schedule(step) for step in range(steps)]


@pytest.mark.reference
@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200)),
        ("cosine(final=0.1)", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200, 0.1)),
        ("step(epochs=3, factor=0.5)", lambda o: torch.optim.lr_scheduler.StepLR(o, 30, 0.5)),
        (
            "piecewise({8: 0.1, 12: 0.01})",
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [80, 120], 0.1),
        ),
        (
            "exponential_decay(steps=1, rate=0.98)",
            lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.98),
        ),
    ],
)
def test_torchs(text: str, make: Callable[[torch.optim.Optimizer], object]) -> None:
    assert ours(text) == pytest.approx(torchs(make, 200), abs=1e-6)


@pytest.mark.reference
def test_one_cycle_is_torchs_but_for_its_counting() -> None:
    """torch counts to the last step, we to the end of training: one step apart at most."""
    total = 5000
    theirs = torchs(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=total, pct_start=0.3, div_factor=25, final_div_factor=400
        ),
        total,
    )
    mine = ours("one_cycle", total, Length(total, 100))
    assert max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) < 2 * math.pi / 2 / 1500


def test_one_cycle() -> None:
    rates = ours("one_cycle", 201)
    assert rates[0] == pytest.approx(0.04)
    assert rates[60] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.52)
    assert rates[130] == pytest.approx((1 + 0.0001) / 2)
    assert rates[200] == pytest.approx(0.0001)
    assert rates[:61] == sorted(rates[:61])
    assert rates[60:] == sorted(rates[60:], reverse=True)
    other = ours("one_cycle(rise=0.5, start=0, final=0)", 201)
    assert (other[0], other[100], other[200]) == pytest.approx((0, 1, 0))


def test_exponential_decay_is_kerass() -> None:
    smooth, stairs = (
        ours(f"exponential_decay(steps=50, rate=0.9{flag})", 151)
        for flag in ("", ", staircase=True")
    )
    assert smooth[50] == stairs[50] == pytest.approx(0.9)
    assert smooth[75] == pytest.approx(0.9**1.5)
    assert stairs[99] == pytest.approx(0.9)
    assert stairs[150] == pytest.approx(0.9**3)


def test_inverse_time() -> None:
    rates = ours("inverse_time(0.1)", 31)
    assert (rates[0], rates[10], rates[30]) == pytest.approx((1, 0.5, 0.25))
    assert set(ours("inverse_time(0)", 5)) == {1.0}


def test_piecewise_is_absolute_and_sorts() -> None:
    rates = ours("piecewise({15: 0.5, 2: 0.1})")
    assert (rates[0], rates[19], rates[20], rates[149], rates[150]) == (1, 1, 0.1, 0.1, 0.5)
    assert ours("piecewise({0: 0.3})")[0] == 0.3


def test_warm_up_rises_linearly_to_the_schedule() -> None:
    rates, plain = ours("cosine", warmup=20), ours("cosine")
    assert rates[:20] == pytest.approx([p * (i + 1) / 20 for i, p in enumerate(plain[:20])])
    assert rates[20:] == plain[20:]
    assert ours("constant", 5, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(ConfigError, match="one_cycle rises by itself"):
        build("one_cycle", length=LENGTH, warmup_steps=1)


EXAMPLES = {
    "constant": "constant",
    "cosine": "cosine(0.2)",
    "one_cycle": "one_cycle",
    "step": "step(2)",
    "piecewise": "piecewise({1: 0.5})",
    "exponential_decay": "exponential_decay",
    "inverse_time": "inverse_time(1e-3)",
    "linear": "linear(0.1)",
}


@given(
    st.sampled_from(sorted(EXAMPLES)),
    st.integers(0, 10**6),
    st.integers(1, 10**5),
    st.integers(1, 500),
)
def test_every_schedule_is_a_plain_pure_factor(
    name: str, step: int, total: int, per_epoch: int
) -> None:
    schedule = build(EXAMPLES[name], length=Length(total, per_epoch), warmup_steps=0)
    value = schedule(step)
    assert type(value) is float
    assert 0 <= value <= 1
    assert schedule(step) == value


def test_the_table_is_covered() -> None:
    assert set(EXAMPLES) == set(SCHEDULES)


@pytest.mark.parametrize(
    "text",
    [
        "cosin",
        "cosine(final='x')",
        "cosine(final=-0.1)",
        "cosine(final=1.5)",
        "cosine(final=1e999)",
        "one_cycle(rise=0)",
        "one_cycle(rise=1)",
        "one_cycle(start=-1)",
        "one_cycle(final=2)",
        "step(epochs=0)",
        "step(factor=-1)",
        "step(2.5)",
        "piecewise",
        "piecewise({})",
        "piecewise([1])",
        "piecewise({'a': 1})",
        "piecewise({1: 'b'})",
        "piecewise({-1: 0.1})",
        "piecewise({1: -0.1})",
        "exponential_decay(steps=0)",
        "exponential_decay(rate=-0.5)",
        "exponential_decay(rate=1.5)",
        "exponential_decay(staircase=1)",
        "inverse_time",
        "inverse_time(-0.1)",
        "inverse_time(rate='slow')",
        "constant(1)",
        "linear(final=-0.1)",
        "linear(2)",
        "constant(length=3)",
    ],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        build(text, length=LENGTH)


def test_linear_is_a_line_to_final() -> None:
    schedule = build("linear(0.2)", length=Length(10, 5))
    assert [schedule(s) for s in range(11)] == pytest.approx([1 - 0.08 * s for s in range(11)])
    assert schedule(1000) == pytest.approx(0.2)


def test_sizes_rise_at_their_shares_of_all_steps() -> None:
    found = stages(" 24@0.35| 28@.7 ")
    assert found == (Stage(0.35, 24), Stage(0.7, 28))
    check_stages(found, full=32)
    size = size_at(found, full=32, total_steps=100)
    assert [size(s) for s in (0, 34, 35, 69, 70, 99, 5000)] == [24, 24, 28, 28, 32, 32, 32]
    assert stages("none") == stages(" ") == ()
    assert size_at((), full=32, total_steps=100)(0) == 32
    assert size_at(stages("8@1"), full=9, total_steps=7)(6) == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("24", "not of the form SIZE@SHARE"),
        ("24@", "not of the form"),
        ("24@0.5|", "not of the form"),
        ("-24@0.5", "not of the form"),
        ("24@1e-1", "not of the form"),
        ("24@0", "the share 0 is out of order"),
        ("24@1.5", "the share 1.5 is out of order"),
        ("24@0.5|28@0.5", "the share 0.5 is out of order"),
        ("24@0.7|28@0.3", "the share 0.3 is out of order"),
        ("32@0.5", "32 px is not below the input's 32 px"),
        ("0@0.5", "0 px; at least 1 px is accepted"),
    ],
)
def test_stages_that_cannot_be_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match="progressive") as error:
        check_stages(stages(text), full=32)
    assert says in str(error.value)


# --- landing -------------------------------------------------------------------------------------


def test_without_a_landing_a_step_is_its_place() -> None:
    place = landed((), total_steps=200)
    assert [place(step) for step in range(200)] == list(range(200))


def test_a_landing_goes_through_the_rest_evenly() -> None:
    place = landed((Landing(20, 80),), total_steps=200)
    assert [place(step) for step in (0, 19, 20, 50, 80)] == [0, 19, 20, 110, 200]
    schedule = build("cosine", length=LENGTH)
    assert schedule(place(80)) == pytest.approx(0, abs=1e-12)
    assert schedule(place(50)) == schedule(110)


@given(st.lists(st.integers(0, 199), min_size=1, max_size=4), st.data())
def test_landings_rise_without_a_jump_to_the_schedules_end(
    steps: list[int], data: st.DataObject
) -> None:
    found, end = [], 200
    for step in sorted(steps):
        if step >= end:
            break
        end = data.draw(st.integers(step + 1, end))
        found.append(Landing(step, end))
    assert landings("|".join(map(str, found))) == tuple(found)
    place = landed(found, total_steps=200)
    places = [place(step) for step in range(end + 1)]
    assert places[-1] == pytest.approx(200)
    assert all(b > a for a, b in itertools.pairwise(places))
    for each in found:  # where it begins it is where it would have been
        before = landed([other for other in found if other.step < each.step], total_steps=200)
        assert place(each.step) == pytest.approx(before(each.step))


@pytest.mark.parametrize(
    "text", ["3", "3:2", "3:3", "-1:4", "a:4", "1:8|0:3", "1:8|2:9", "1:8|9:10"]
)
def test_landings_that_do_not_go(text: str) -> None:
    with pytest.raises(ConfigError, match="landing"):
        landings(text)
