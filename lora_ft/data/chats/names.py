"""Replacement of people's names in chats, consistent across senders, mentions and texts."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from lora_ft.data.chats.message import Message

# Names for women and men; none is a frequent word in texts.
_NAMES = (
    "Addison Adrian Alex Andie Arden Ariel Ashton Aubrey Avery Bailey Blair Brett Cameron Camille Carey Casey Charlie "
    "Corey Dakota Dallas Dana Darcy Devon Drew Eden Eli Ellis Emerson Emery Finley Florian Frankie Gabriel Harley "
    "Harper Hayden Hollis Ira Jackie Jamie Jan Jesse Jody Jordan Jules Kai Kelly Kelsey Kendall Kerry Kim Kit Kyle "
    "Lane Laurie Lee Leslie Logan Lou Luca Mackenzie Marlow Mel Micah Mika Morgan Nicky Noel Nour Parker Pat Peyton "
    "Quinn Ray Reese Remy Riley Robin Rory Rowan Ryan Sacha Sam Sandy Sasha Shannon Shay Sidney Skyler Stacy Sol "
    "Tatum Taylor Terry Toby Tony Tracy Valentine Vivian Wesley Yael Yuri"
)
NEUTRAL = tuple(_NAMES.split())
_EVERYBODY = {"all", "channel", "everyone", "here"}
_MENTION = re.compile(r"(?<![\w@.])@(\w+)")
# Names that are also words. They stay if written in lower case and not as a mention.
_ALSO_WORDS = (
    "amber april art august autumn bill bob brook chance chase chip cliff daisy dawn dick drew faith flora frank gene "
    "grace grant guy harmony heath herb hope hunter iris ivy jack jade jasmine jean joy june lance lily mark may max "
    "melody miles nick olive pat pearl peg pierce pip poppy ray reed rich rob robin rod rose ruby rusty sky skip sue "
    "summer sunny tab van victor wade will"
)
_WORDS = frozenset(_ALSO_WORDS.split())
_SHORTEST = 3  # minimum letters of a part of a name that is replaced


def anonymize(
    chats: Mapping[str, Sequence[Message]], seed: int, people: Collection[str] = ()
) -> dict[str, list[Message]]:
    """Return the same messages with replaced names.

    A person has the same new name in every file, and two people never share a name. Full names, name parts of at least
    three letters and mentions (`@somebody`) are replaced in any case, except names that are English words. Other
    identifying details (addresses, numbers, places) stay.

    Args:
        chats: Messages by chat, all of one export.
        seed: Seed of the name choice.
        people: Additional names that texts may mention, e.g. of senders who were left out.
    """
    messages = [message for chat in chats.values() for message in chat]
    senders = sorted({message.sender for message in messages} | set(people))
    owners = {part.casefold(): sender for sender in senders for part in _parts(sender)}
    owners |= {sender.casefold(): sender for sender in senders}
    handles = {handle.casefold() for message in messages for handle in _MENTION.findall(message.text)}
    strangers = sorted(handles - owners.keys() - _EVERYBODY)
    new_names = _choose([*senders, *strangers], seed)
    replacements = {name: new_names[owner] for name, owner in owners.items()} | {
        name: new_names[name] for name in strangers
    }
    change = _replacement(replacements, strangers)
    return {
        chat: [
            replace(message, sender=new_names[message.sender], text=change(message.text)) for message in chat_messages
        ]
        for chat, chat_messages in chats.items()
    }


def _replacement(new_names: Mapping[str, str], strangers: Sequence[str]) -> Callable[[str], str]:
    """Return a function that replaces all names of a text in one pass. Strangers are replaced only in mentions."""
    mentions = [f"(?<=(?<![\\w@.])@){re.escape(name)}(?!\\w)" for name in strangers]
    names = sorted(new_names.keys() - set(strangers), key=lambda name: (-len(name), name))
    pattern = re.compile("|".join([*mentions, *map(_whole, names)]) or r"(?!)", re.IGNORECASE)

    def replace_name(match: re.Match[str]) -> str:
        name, mentioned = match[0], match.string[: match.start()].endswith("@")
        return name if name in _WORDS and not mentioned else new_names.get(name.casefold(), name)

    return lambda text: pattern.sub(replace_name, text)


def _whole(name: str) -> str:
    """Return the pattern of a name as a whole word."""
    before, after = (edge if _is_spaced(end) else "" for edge, end in ((r"(?<!\w)", name[0]), (r"(?!\w)", name[-1])))
    return f"{before}{re.escape(name)}{after}"


def _is_spaced(letter: str) -> bool:
    """Return whether a letter's script has spaces between words. Thai, its neighbors, Chinese and Japanese do not."""
    code = ord(letter)
    return code < 0x0E00 or 0x10A0 <= code < 0x1780 or 0x1800 <= code < 0x2E80 or 0xAC00 <= code < 0xD7B0


def _parts(name: str) -> list[str]:
    words = re.findall(r"[^\W\d_]+", name)
    return [word for word in words if len(word) >= _SHORTEST] if len(words) > 1 else []


def _choose(people: Sequence[str], seed: int) -> dict[str, str]:
    """Return a new name for each person, ranked by a hash of the old name. Later people take the next free name."""
    real = {name.casefold() for name in people}
    new_names: dict[str, str] = {}
    used: set[str] = set()
    for name in people:
        ranked = sorted(NEUTRAL, key=lambda candidate: hashlib.sha256(f"{seed}:{name}:{candidate}".encode()).digest())
        candidates = (
            candidate + (str(number) if number > 1 else "") for number in itertools.count(1) for candidate in ranked
        )
        new_names[name] = next(
            candidate for candidate in candidates if candidate not in used and candidate.casefold() not in real
        )
        used.add(new_names[name])
    return new_names
