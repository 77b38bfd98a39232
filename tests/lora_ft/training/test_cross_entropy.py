"""Cross-entropy of a few rows at a time equals that of torch."""

from __future__ import annotations

import pytest
import torch

from lora_ft.core.tokenizer import IGNORED
from lora_ft.training.cross_entropy import SummedCrossEntropy


@pytest.mark.parametrize("tokens", [1, 32, 75])
def test_cross_entropy_in_chunks_equals_that_of_torch(tokens: int) -> None:
    torch.manual_seed(0)
    values, labels = 5 * torch.randn(tokens, 80), torch.randint(0, 80, (tokens,))
    labels[1::3] = IGNORED
    plain, chunked = (values.bfloat16().requires_grad_() for _ in range(2))
    expected = torch.nn.functional.cross_entropy(plain.float(), labels, ignore_index=IGNORED, reduction="sum")
    loss = SummedCrossEntropy.apply(chunked, labels, IGNORED)
    (expected / 7).backward()
    (loss / 7).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(chunked.grad, plain.grad, rtol=0.01, atol=1e-6)
