"""Options go the way that can do what they ask for."""

from __future__ import annotations

from typing import Any

import pytest

from lora_ft.core.generation_options import Options
from lora_ft.export.runtime.decoding import Strategy, beam, constrained, greedy, prompt_lookup, sampling, strategy


@pytest.mark.parametrize("length", [{}, {"max_new_tokens": 5}], ids=str)
@pytest.mark.parametrize(
    ("values", "whole", "streamed"),
    [
        ({}, greedy.search, greedy.stream),
        ({"min_new_tokens": 3}, greedy.search, greedy.stream),
        ({"prompt_lookup": True}, prompt_lookup.search, prompt_lookup.search),
        ({"prompt_lookup": True, "min_new_tokens": 3}, greedy.search, greedy.stream),
        ({"num_beams": 2}, beam.search, beam.search),
        ({"num_beams": 2, "prompt_lookup": True}, beam.search, beam.search),
        ({"num_beams": 2, "repetition_penalty": 2.0, "output_scores": True}, beam.search, beam.search),
        ({"do_sample": True}, sampling.search, sampling.search),
        ({"do_sample": True, "prompt_lookup": True, "num_return_sequences": 3}, sampling.search, sampling.search),
        ({"output_scores": True, "prompt_lookup": True}, sampling.search, sampling.search),
        ({"repetition_penalty": 1.2, "prompt_lookup": True}, sampling.search, sampling.search),
        ({"allowed": [[5], [6]], "prompt_lookup": True}, constrained.search, constrained.search),
        ({"allowed": [[5], [6]], "num_beams": 2}, beam.search, beam.search),
        ({"allowed": [[5], [6]], "do_sample": True}, sampling.search, sampling.search),
        ({"allowed": [[5], [6]], "output_scores": True}, sampling.search, sampling.search),
        ({"allowed": [[5], [6]], "repetition_penalty": 1.2}, sampling.search, sampling.search),
        ({"forced_eos_token_id": 1, "prompt_lookup": True}, sampling.search, sampling.search),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.__module__,  # a function's address varies
)
def test_options_go_the_way_that_can_do_it(
    values: dict[str, Any], whole: Strategy, streamed: Strategy, length: dict[str, int]
) -> None:
    assert strategy(Options.of(values | length)) is whole
    assert strategy(Options.of(values | length), stream=True) is streamed
