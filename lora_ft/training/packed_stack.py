"""Encoder and decoder of T5 on packed rows: no layer but attention sees padding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_ft.training.lean_layers import GatedGelu, Projection, is_frozen, normalize
from lora_ft.training.packed_attention import Chunk, PackedAttention, attention_chunks, padded_width
from lora_ft.training.packed_rows import PackedRows


class PackedStacks:
    """Encoder and decoder of a T5 that compute packed rows in training mode and in `scoring`.

    The logits are then [target tokens, vocabulary], and a decoder attention mask says which target tokens there are.
    Names, weights and gradients stay as they are, and so does generation.

    Args:
        model: T5 with or without an adapter, in float32. Packed rows are computed under bf16 autocast.
        projection: Returns the function that computes linear layers with one input.
    """

    def __init__(
        self, model: Any, projection: Callable[[Sequence[Any]], Callable[[Tensor], Tensor]] = Projection
    ) -> None:
        from transformers.activations import NewGELUActivation

        self._model, self._is_scoring = model, False
        self._modules: list[nn.Module] = []
        for module in list(model.modules()):
            packed: Callable[..., Any]
            if hasattr(module, "embed_tokens") and hasattr(module, "final_layer_norm"):
                packed = _Stack(module, projection, NewGELUActivation)
            elif isinstance(module, nn.Linear) and module.out_features == model.config.vocab_size and is_frozen(module):
                packed = projection([module])
            else:
                continue
            module.forward = partial(self._run, packed, module.forward)
            self._modules.append(module)

    @property
    def active(self) -> bool:
        """True if the model computes packed rows now."""
        return self._is_scoring or self._model.training

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """Compute packed rows in evaluation mode, too: for losses, since generation needs padded rows."""
        self._is_scoring = True
        try:
            yield
        finally:
            self._is_scoring = False

    def remove(self) -> None:
        """Restore the model's own forward passes."""
        for module in self._modules:
            del module.forward

    def _run(self, packed: Callable[..., Any], forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return (packed if self.active else forward)(*args, **options)


class _Stack:
    """Forward pass of an encoder or decoder."""

    def __init__(self, stack: Any, projection: Callable[..., Any], gelu: type) -> None:
        self._stack = stack
        self._blocks = [_Block(block, projection, gelu) for block in stack.block]
        crossed = [block.layer[1].EncDecAttention for block in stack.block] if stack.is_decoder else []
        # one product for all layers, since all of them read the same states
        self._keys_values = projection([linear for layer in crossed for linear in (layer.k, layer.v)])

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Return packed states as transformers' output, for ids and masks [rows, width] and packed encoder states."""
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        stack = self._stack
        rows = PackedRows.of(torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        states = stack.dropout(stack.embed_tokens(rows.pack(input_ids)))
        crossed: list[Chunk] = []
        parts: Sequence[Tensor | None] = [None] * len(self._blocks)
        if encoder_hidden_states is not None:
            assert encoder_attention_mask is not None  # `collate` makes it
            source = PackedRows.of(encoder_attention_mask)
            positions = torch.zeros(stack.config.num_heads, padded_width(rows), padded_width(source))
            crossed = attention_chunks(rows, source, positions, is_causal=False)
            parts = self._keys_values(encoder_hidden_states).chunk(len(self._blocks), dim=1)
        for block, keys_values in zip(self._blocks, parts, strict=True):
            if block.attention.has_relative_attention_bias:  # the first block's serves all of them, but in UMT5
                positions = block.attention.compute_bias(padded_width(rows), padded_width(rows))[0]
                chunks = attention_chunks(rows, rows, positions, is_causal=stack.is_decoder)
            states = block.checkpointed(states, chunks, keys_values, crossed)
        states = stack.dropout(normalize(stack.final_layer_norm, states))
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)


class _Block:
    """Forward pass of a block."""

    def __init__(self, block: Any, projection: Callable[..., Any], gelu: type) -> None:
        self._block = block
        self.attention, dense = block.layer[0].SelfAttention, block.layer[-1].DenseReluDense
        self._qkv = projection([self.attention.q, self.attention.k, self.attention.v])
        self._o = projection([self.attention.o])
        if block.is_decoder:
            self._q, self._crossed_o = (
                projection([linear]) for linear in (block.layer[1].EncDecAttention.q, block.layer[1].EncDecAttention.o)
            )
        is_gated = hasattr(dense, "wi_1")
        self._wi = projection([dense.wi_0, dense.wi_1] if is_gated else [dense.wi])
        self._wo = projection([dense.wo])
        if not is_gated:
            self._act = dense.act
        elif isinstance(dense.act, gelu):
            self._act = GatedGelu.apply
        else:
            self._act = partial(_gated, dense.act)

    def checkpointed(self, *args: Any) -> Tensor:
        """Run the block; with gradient checkpointing, its activations are computed again in the backward pass."""
        if self._block.training and getattr(self._block, "gradient_checkpointing", False):
            return self._block._gradient_checkpointing_func(self._run, *args)
        return self._run(*args)

    def _run(self, states: Tensor, chunks: list[Chunk], keys_values: Tensor | None, crossed: list[Chunk]) -> Tensor:
        layer = self._block.layer[0]
        x = self._qkv(normalize(layer.layer_norm, states))
        x = _attend(x, None, chunks, self.attention)
        states = states + layer.dropout(self._o(x))
        if keys_values is not None:
            layer = self._block.layer[1]
            x = self._q(normalize(layer.layer_norm, states))
            x = _attend(x, keys_values, crossed, layer.EncDecAttention)
            states = states + layer.dropout(self._crossed_o(x))
        layer = self._block.layer[-1]
        x = layer.DenseReluDense.dropout(self._act(self._wi(normalize(layer.layer_norm, states))))
        return states + layer.dropout(self._wo(x))


def _attend(x: Tensor, source: Tensor | None, chunks: list[Chunk], attention: Any) -> Tensor:
    dropout = attention.dropout if attention.training else 0.0
    output: Tensor = PackedAttention.apply(x, source, chunks, dropout, *(chunk.bias for chunk in chunks))
    return output


def _gated(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return act(a) * b
