"""Stop texts in answers that arrive in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.serving.stop_sequences import StopSequences

LETTERS = st.text(alphabet="ab", max_size=12)


def test_a_stop_text_may_arrive_in_two_pieces() -> None:
    stops = StopSequences(["\n\n"])
    assert [stops.feed("one\n"), stops.feed("two\n"), stops.feed("\nthree")] == ["one", "\ntwo", ""]
    assert stops.stopped


def test_the_end_of_an_answer_is_not_lost() -> None:
    stops = StopSequences(["stop"])
    assert stops.feed("do not sto") == "do not "
    assert stops.finish() == "sto"
    assert not stops.stopped


def test_without_stop_texts_every_piece_passes() -> None:
    stops = StopSequences([])
    assert stops.feed("any") == "any"
    assert stops.finish() == ""


@given(st.lists(LETTERS, max_size=8), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_pieces_end_at_the_earliest_stop_text(pieces: list[str], texts: list[str]) -> None:
    stops, answer = StopSequences(texts), ""
    for piece in pieces:
        answer += stops.feed(piece)
    answer += stops.finish()
    # A stop text is found as soon as it is complete, so the shorter one wins over an earlier start.
    whole = "".join(pieces)
    assert whole.startswith(answer)
    assert not any(text in answer for text in texts)
    assert stops.stopped == any(text in whole for text in texts)
    if not stops.stopped:
        assert answer == whole
