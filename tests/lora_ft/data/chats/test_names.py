"""Replacement of names: one new name per person everywhere, and no original name remains."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.chats.message import Message
from lora_ft.data.chats.names import NEUTRAL, anonymize


def chat_of(*lines: tuple[str, str]) -> dict[str, list[Message]]:
    return {"chat": [Message(str(i), float(i), name, text) for i, (name, text) in enumerate(lines)]}


def changed(*lines: tuple[str, str], seed: int = 0) -> list[tuple[str, str]]:
    return [(message.sender, message.text) for message in anonymize(chat_of(*lines), seed)["chat"]]


def test_a_name_is_replaced_as_a_sender_in_texts_and_in_mentions() -> None:
    (tuck, first), (oswin, second), (_, third) = changed(
        ("Tuck", "for the record oswin, OSWIN's spade"), ("Oswin", "@Tuck says Tucker. ask tuck@x.org"), ("Tuck", "x")
    )
    assert tuck != oswin and {tuck, oswin} <= set(NEUTRAL)
    assert first == f"for the record {oswin}, {oswin}'s spade"
    assert second == f"@{tuck} says Tucker. ask {tuck}@x.org"
    assert third == "x"


def test_parts_of_a_full_name_are_replaced() -> None:
    (ana, _), (_, text) = changed(("Ana María López", "x"), ("Ben", "ana, Lopez, López and @Ana María López; Maria"))
    assert text == f"{ana}, Lopez, {ana} and @{ana}; Maria"


def test_names_that_are_words_are_replaced_as_names_only() -> None:
    (will, _), (_, text) = changed(("Will", "x"), ("Ana", "will Will come, WILL he? @will"))
    assert text == f"will {will} come, {will} he? @{will}"


def test_stranger_is_replaced_only_in_mentions() -> None:
    ((_, text),) = changed(("Ben", "@plant_ana plant_ana @everyone me@plant.org"))
    assert re.fullmatch(r"@[A-Z]\w+ plant_ana @everyone me@plant\.org", text) and "@plant_ana" not in text


def test_names_in_scripts_without_spaces_need_no_word_boundaries() -> None:
    (wei, _), (_, text) = changed(("王伟", "x"), ("Ana", "你好王伟吗"))
    assert text == f"你好{wei}吗"


def test_special_characters_in_a_name_are_literal() -> None:
    (star, _), (_, text) = changed(("A*(", "x"), ("Ana", "AAA( and A*( too"))
    assert text == f"AAA( and {star} too"


def test_the_seed_chooses_and_files_of_the_same_people_agree() -> None:
    names = ("Ana", "Ben", "Cleo", "Dov", "Ede")
    first = {
        name: new_name for name, (new_name, _) in zip(names, changed(*((name, "x") for name in names)), strict=True)
    }
    back = dict(zip(reversed(names), (o for o, _ in changed(*((n, "y") for n in reversed(names)))), strict=True))
    assert first == back
    assert first != dict(zip(names, (o for o, _ in changed(*((n, "x") for n in names), seed=1)), strict=True))


@given(
    st.sets(
        st.text("abcdeé -", min_size=3, max_size=8).map(str.strip).filter(lambda n: len(n) > 2),
        min_size=1,
        max_size=200,
    )
)
def test_new_names_are_distinct_and_no_original_name_remains(names: set[str]) -> None:
    people = sorted(names)
    lines = changed(*((name, f"{name}, hello") for name in people))
    assert len({sender for sender, _ in lines}) == len(people)
    for name, (sender, text) in zip(people, lines, strict=True):
        assert sender not in names
        assert name.casefold() not in re.split(r"[, ]+", text.casefold())


def test_names_of_excluded_people_are_replaced_in_texts() -> None:
    (message,) = anonymize(chat_of(("Ana", "Carl Oak told me, and Carl knows")), 0, people=["Carl Oak"])["chat"]
    assert "Carl" not in message.text and "Oak" not in message.text and message.text.count(message.sender) == 0
