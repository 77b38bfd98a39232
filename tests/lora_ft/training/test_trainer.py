"""Loss of a step: label smoothing as in transformers, and the error for a loss that is zero or not finite."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from lora_ft.core.errors import LossError
from lora_ft.training.trainer import loss_error, token_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_transformers(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[0, 3:] = -100
    expected = LabelSmoother(epsilon=smoothing)({"logits": logits}, labels)
    loss = token_loss(SimpleNamespace(logits=logits), labels, smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (float("nan"), r"the loss of step 3 is not finite \(got nan\); lower train.learning_rate"),
        (float("inf"), r"the loss of step 3 is not finite \(got inf\); lower train.learning_rate"),
        (0.0, "the loss of step 3 is exactly 0; check that the targets are not empty"),
    ],
)
def test_loss_that_is_zero_or_not_finite_is_a_loss_error(loss: float, message: str) -> None:
    error = loss_error(loss, 3)
    assert error is not None and error.exit_code == 1
    with pytest.raises(LossError, match=message):
        raise error


def test_finite_loss_is_no_error() -> None:
    assert loss_error(0.5, 3) is None
