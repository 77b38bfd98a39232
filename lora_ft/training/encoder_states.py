"""States of a frozen encoder, computed once for each prompt.

An adapter of the decoder alone leaves the encoder as it is, so that a prompt has the same states in every epoch.
Prompts are encoded with those of similar length, in batches that the rows alone determine, so that a resumed run
computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lora_ft.core.memory import allowed_memory
from lora_ft.core.tokenizer import pad as pad_ids
from lora_ft.data.batching import MULTIPLE, Encoded
from lora_ft.training.packed_rows import PackedRows

_TOKENS = 2048  # encoded at a time
Prompt = tuple[int, ...]


class EncoderStates:
    """Encoder states of the prompts of a training, in memory once they have been needed.

    Args:
        model: T5 with a frozen encoder without dropout. It is in training mode when states are read.
        prompts: Distinct prompts of the training rows, see `distinct_prompts`.
        packed: True if the model trains on packed rows, see `packed_stack`.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], *, packed: bool) -> None:
        self._encoder, self._packed = model.get_encoder(), packed
        self._batches = {prompt: batch for batch in _batches(prompts) for prompt in batch}
        self._states: dict[Prompt, Tensor] = {}

    @torch.no_grad()
    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the encoder's states for a batch of training rows, with zeros as padding.

        Args:
            batch: `input_ids` and `attention_mask` [rows, width], on the CPU.

        Returns:
            [rows, width, d], or [tokens, d] for packed rows, in the encoder's own number format.
        """
        ids, rows = batch["input_ids"], PackedRows.of(batch["attention_mask"])
        states = [self._of(tuple(row[:length].tolist())) for row, length in zip(ids, rows.lengths, strict=True)]
        if self._packed:
            return torch.cat([*states, states[0].new_zeros(rows.filler, states[0].shape[1])])
        return torch.stack([pad(row, (0, 0, 0, ids.shape[1] - len(row))) for row in states])

    def _of(self, prompt: Prompt) -> Tensor:
        """Return the states [tokens, d] of a prompt."""
        if prompt not in self._states:
            batch = self._batches[prompt]
            ids, mask = (
                torch.from_numpy(pad_ids(values, 0, MULTIPLE)) for values in (batch, [[1] * len(row) for row in batch])
            )
            states = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            lengths = [len(row) for row in batch]
            rows = [states[span] for span in PackedRows(lengths).spans()] if self._packed else states
            for row, length, own in zip(batch, lengths, rows, strict=True):
                self._states[row] = own[:length].clone()
        return self._states[prompt]


def distinct_prompts(rows: Iterable[Encoded]) -> list[Prompt]:
    """Return the prompts of rows, the shortest first, in an order that the prompts alone determine."""
    return sorted({tuple(row.input_ids) for row in rows}, key=lambda prompt: (len(prompt), prompt))


def states_bytes(numbers: int, *, packed: bool) -> int:
    """Return the memory of encoder states, in bytes.

    Args:
        numbers: Numbers in the states of all distinct prompts.
        packed: True for packed rows, whose states are bf16. Other states are float32.
    """
    return numbers * (2 if packed else 4)


def states_fit(numbers: int, *, packed: bool) -> bool:
    """Return True if encoder states take at most a quarter of the memory that the process may use."""
    return states_bytes(numbers, packed=packed) <= allowed_memory() // 4


def _batches(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Return prompts, sorted by length, as batches of `_TOKENS` tokens including padding."""
    batches: list[list[Prompt]] = []
    for prompt in prompts:
        if batches and (len(batches[-1]) + 1) * len(prompt) <= _TOKENS:
            batches[-1].append(prompt)
        else:
            batches.append([prompt])
    return batches
