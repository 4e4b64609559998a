"""Cross entropy in every form against its formula, and class weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldmark.errors import ConfigError
from fieldmark.fit.losses import class_weights, loss_sum, one_hot

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0], [1.0, 1.0, -2.0], [4.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 1, 2, 1])


def manual(targets: torch.Tensor, smoothing: float, weights: torch.Tensor | None) -> float:
    log_probs = LOGITS.double() - LOGITS.double().exp().sum(1, keepdim=True).log()
    spread = targets.double() * (1 - smoothing) + smoothing / 3
    if weights is not None:
        spread = spread * weights.double()
    return float(-(spread * log_probs).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.5])])
def test_loss_is_its_formula_for_labels_and_shares(
    smoothing: float, weights: torch.Tensor | None
) -> None:
    hard = loss_sum(LOGITS, LABELS, smoothing=smoothing, weights=weights)
    soft = loss_sum(LOGITS, one_hot(LABELS, 3), smoothing=smoothing, weights=weights)
    wanted = manual(one_hot(LABELS, 3), smoothing, weights)
    assert float(hard) == pytest.approx(wanted, rel=1e-5)
    assert float(soft) == pytest.approx(wanted, rel=1e-5)
    mixed = one_hot(LABELS, 3) * 0.7 + one_hot(LABELS.flip(0), 3) * 0.3
    got = loss_sum(LOGITS, mixed, smoothing=smoothing, weights=weights)
    assert float(got) == pytest.approx(manual(mixed, smoothing, weights), rel=1e-5)


def test_parts_of_a_batch_add_up() -> None:
    whole = loss_sum(LOGITS, LABELS, smoothing=0.1)
    parts = sum(loss_sum(LOGITS[i : i + 1], LABELS[i : i + 1], smoothing=0.1) for i in range(4))
    assert float(whole) == pytest.approx(float(parts), rel=1e-6)


COUNTS = np.array([10, 30, 60])
NAMES = ("a", "b", "c")


def test_class_weights() -> None:
    assert class_weights("none", COUNTS, NAMES) is None
    balanced = class_weights("balanced", COUNTS, NAMES)
    assert balanced is not None
    assert balanced.dtype == torch.float32
    products = balanced.double().numpy() * COUNTS
    assert products == pytest.approx([100 / 3] * 3, rel=1e-6)
    own = class_weights("1, 2,4", COUNTS, NAMES)
    assert own is not None
    assert (own / own[0]).tolist() == pytest.approx([1, 2, 4])
    assert float((own.double().numpy() * COUNTS).sum() / 100) == pytest.approx(1)


@pytest.mark.parametrize(
    "text",
    ["", "1,2", "1,2,3,4", "1,2,0", "1,2,-1", "1,2,nan", "1,2,inf", "a,b,c", "balance", "1;2;3"],
)
def test_class_weights_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match=r"3 positive numbers.*a, b, c"):
        class_weights(text, COUNTS, NAMES)
