"""The loss: transformers' own label smoothing, over the tokens of a whole step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from lora_ft.training.trainer import token_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_that_of_transformers(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[0, 3:] = -100
    expected = LabelSmoother(epsilon=smoothing)({"logits": logits}, labels)
    loss = token_loss(SimpleNamespace(logits=logits), labels, smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
