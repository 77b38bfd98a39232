"""Names by capital letters and numbers by digits, and when a source has them."""

from __future__ import annotations

import pytest

from lora_ft.data.entities import Source, marks_names, names, numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yesterday Tom met Anna Smith in New York.", ["Tom", "Anna Smith", "New York"]),
        ("Tom sleeps. Anna sleeps.", []),  # the start of a sentence says nothing
        ("The United States won.", ["United States"]),
        ("He told Mr. Brown that I was at Jean-Luc O'Brien's.", ["Mr. Brown", "Jean-Luc O'Brien"]),
        ('She said: "Come here", and Bob came.', ["Bob"]),
        ("- Then Bob came.", ["Bob"]),
        ("MAN BITES DOG", []),
        ("Man Bites Dog", []),
        ("#Person1# calls #Person2#.", ["Person2"]),
        ("they met Tom and later Tom again", ["Tom"]),
        ("Вчера Анна видела Петра.", ["Анна", "Петра"]),
        ("χθες ο Γιάννης ήρθε", ["Γιάννης"]),
        ("어제 갔던 apple의 Tom은", ["Tom"]),
        ("今日はトムに会った。", []),
        ("", []),
    ],
)
def test_names_have_capital_letters_inside_a_sentence(text: str, expected: list[str]) -> None:
    assert names(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9,000 of 3.5 at 12:30, 5pm, Person1 and A4", ["9,000", "3.5", "12:30", "5"]),
        ("2024-03-05 or 5/3/24", ["2024", "03", "05", "5", "3", "24"]),
        ("٣ and ３", ["٣", "3"]),
        ("none", []),
    ],
)
def test_numbers_are_digits(text: str, expected: list[str]) -> None:
    assert numbers(text) == expected


@pytest.mark.parametrize(
    ("source", "name", "language", "has"),
    [
        ("hi anna, it's tom", "Anna", "en", True),
        ("Smith met Anna", "Anna Smith", "en", True),
        ("I am Brown", "Mr. Brown", "en", True),
        ("the american team", "Americans", "en", True),
        ("Anny nie ma", "Anna", "pl", True),
        ("с Петром", "Петра", "ru", True),
        ("Anna met Brown", "Anna Smith", "en", False),
        ("Daniel is here", "Dan", "en", False),
        ("Anny nie ma", "Tomasz", "pl", False),
        ("", "Anna", "en", False),
    ],
)
def test_a_source_has_a_name_in_any_case_and_form(source: str, name: str, language: str, has: bool) -> None:
    assert Source(source, language).has_name(name) is has


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("9000", "9,000"),
        ("9.000 Euro", "9000"),
        ("3,50 €", "3.5"),
        ("on 05 March", "5"),
        ("at 5 pm", "5:00"),
        ("٣", "3"),
        ("two of them", "2"),
        ("Twenty-five people", "25"),
        ("three hundred", "300"),
        ("zero", "0"),
    ],
)
def test_a_source_has_a_number_in_another_spelling(source: str, number: str) -> None:
    assert Source(source, "en").has_number(number)


@pytest.mark.parametrize(("source", "number"), [("9000", "900"), ("3.5", "35"), ("Person1", "1"), ("two", "3")])
def test_a_source_lacks_a_number(source: str, number: str) -> None:
    assert not Source(source, "en").has_number(number)


def test_number_words_are_english() -> None:
    assert not Source("two of them", "fr").has_number("2")


def test_capital_letters_mark_names_by_language_and_script() -> None:
    assert marks_names(["Tom slept.", "今日"], "en")
    assert not marks_names(["Tom schlief."], "de")
    assert not marks_names(["今日はTomに会った。"], "ja")
    assert not marks_names(["التقى توم بآنا"], "ar")
