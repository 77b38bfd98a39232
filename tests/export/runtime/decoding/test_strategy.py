"""Options go the way that can do what they ask for."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ft.export.runtime.decoding import Strategy, beam, greedy, labels, lookup, stepwise, strategy
from lora_ft.export.runtime.options import Options


@pytest.mark.parametrize("length", [{}, {"max_new_tokens": 5}], ids=str)
@pytest.mark.parametrize(
    ("values", "whole", "streamed"),
    [
        ({}, greedy.search, stepwise.search),
        ({"min_new_tokens": 3}, greedy.search, stepwise.search),
        ({"prompt_lookup": True}, lookup.search, lookup.search),
        ({"prompt_lookup": True, "min_new_tokens": 3}, greedy.search, stepwise.search),
        ({"num_beams": 2}, beam.search, beam.search),
        ({"num_beams": 2, "prompt_lookup": True}, beam.search, beam.search),
        ({"num_beams": 2, "repetition_penalty": 2.0, "output_scores": True}, beam.search, beam.search),
        ({"do_sample": True}, stepwise.search, stepwise.search),
        ({"do_sample": True, "prompt_lookup": True, "num_return_sequences": 3}, stepwise.search, stepwise.search),
        ({"output_scores": True, "prompt_lookup": True}, stepwise.search, stepwise.search),
        ({"repetition_penalty": 1.2, "prompt_lookup": True}, stepwise.search, stepwise.search),
        ({"allowed": [[5], [6]], "prompt_lookup": True}, labels.search, labels.search),
        ({"allowed": [[5], [6]], "num_beams": 2}, beam.search, beam.search),
        ({"allowed": [[5], [6]], "do_sample": True}, stepwise.search, stepwise.search),
        ({"allowed": [[5], [6]], "output_scores": True}, stepwise.search, stepwise.search),
        ({"allowed": [[5], [6]], "repetition_penalty": 1.2}, stepwise.search, stepwise.search),
        ({"forced_eos_token_id": 1, "prompt_lookup": True}, stepwise.search, stepwise.search),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.__module__,  # a function's address varies
)
def test_options_go_the_way_that_can_do_it(
    values: dict[str, Any], whole: Strategy, streamed: Strategy, length: dict[str, int]
) -> None:
    assert strategy(Options.of(values | length)) is whole
    assert strategy(Options.of(values | length), stream=True) is streamed
