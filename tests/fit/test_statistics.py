"""Statistics of batch norms, estimated anew: those of the weights, and nothing else is touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fieldmark.errors import DivergedError
from fieldmark.fit import statistics
from fieldmark.fit.loop import Calm, fit
from tests.fit.test_fit_loop import cnn, make_plan, make_state, source, validate


class Normed(nn.Module):
    """Two norms, with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, momentum=0.01)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(3, momentum=0.01)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.dropout(self.first(x))).mean((2, 3)))


def pictures(batches: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [5 + 2 * torch.randn(8, 3, 4, 4, generator=generator) for _ in range(batches)]


def test_statistics_are_those_of_the_pictures() -> None:
    network = Normed().train()
    statistics.estimate(network, statistics.moving(network), pictures())
    means = torch.stack([batch.mean((0, 2, 3)) for batch in pictures()]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in pictures()]).mean(0)
    torch.testing.assert_close(network.first.running_mean, means)
    torch.testing.assert_close(network.first.running_var, variances)
    # The second one sees what the first one hands on in scores: without dropout.
    torch.testing.assert_close(network.second.running_var, torch.ones(3), atol=0.02, rtol=0)


def test_what_came_before_leaves_no_trace() -> None:
    network = Normed().train()
    other = copy.deepcopy(network)
    for _ in range(5):
        other(100 * torch.randn(8, 3, 4, 4))
    for each in (network, other):
        statistics.estimate(each, statistics.moving(network), pictures())
    for one, two in zip(network.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)


def test_weights_modes_momenta_and_frozen_norms_stay() -> None:
    network = Normed().train()
    network.first.eval()
    before, mean = copy.deepcopy(network), network.first.running_mean.clone()
    assert statistics.moving(network) == ["second"]
    statistics.estimate(network, ["second"], pictures())
    assert torch.equal(network.first.running_mean, mean)
    assert not torch.equal(network.second.running_mean, before.second.running_mean)
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    assert network.second.momentum == 0.01
    assert all(
        torch.equal(one, two)
        for one, two in zip(network.parameters(), before.parameters(), strict=True)
    )


def test_a_failure_leaves_modes_and_momenta() -> None:
    network = Normed().train()

    def broken() -> Iterator[torch.Tensor]:
        yield pictures()[0]
        raise OSError

    with pytest.raises(OSError):
        statistics.estimate(network, statistics.moving(network), broken())
    assert network.training and network.first.training and network.first.momentum == 0.01


def test_weights_that_grew_too_large_have_diverged() -> None:
    network = Normed().train()
    with pytest.raises(DivergedError, match="statistics of a batch norm"):
        statistics.estimate(network, statistics.moving(network), [1e30 * pictures()[0]])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_scores_use_them_and_training_does_not(ema: float) -> None:
    """The weights are those of a training without; what is scored has the statistics anew."""
    batches = [SPEC_IMAGES]

    def trained(calm: Calm | None) -> nn.Module:
        state = make_state(ema=ema)
        list(fit(state, source(), make_plan(), validate=validate, calm=calm))
        return state.scored

    plain, fresh = trained(None), trained(lambda: batches)
    for one, two in zip(plain.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, two)
    expected = copy.deepcopy(plain)
    names = statistics.moving(cnn().train())
    statistics.estimate(expected, names, batches)
    for buffer, other in zip(expected.buffers(), fresh.buffers(), strict=True):
        assert torch.equal(buffer, other)


SPEC_IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
