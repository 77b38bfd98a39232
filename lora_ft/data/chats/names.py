"""Other names for the people of a chat, the same wherever they stand: as senders, in mentions and in texts."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from lora_ft.data.chats.message import Message

# Borne by women and men alike, and no words of their own that texts are full of.
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
# Names that are words too: replaced only where they are written as a name.
_ALSO_WORDS = (
    "amber april art august autumn bill bob brook chance chase chip cliff daisy dawn dick drew faith flora frank gene "
    "grace grant guy harmony heath herb hope hunter iris ivy jack jade jasmine jean joy june lance lily mark may max "
    "melody miles nick olive pat pearl peg pierce pip poppy ray reed rich rob robin rod rose ruby rusty sky skip sue "
    "summer sunny tab van victor wade will"
)
_WORDS = frozenset(_ALSO_WORDS.split())
_SHORTEST = 3  # letters that a part of a name must have to stand for it


def anonymize(
    chats: Mapping[str, Sequence[Message]], seed: int, people: Collection[str] = ()
) -> dict[str, list[Message]]:
    """The same messages under other names.

    The same people get the same names, whatever file they come in; two people never share one. Full names, each of
    their parts of three letters or more and mentions (`@somebody`) are replaced, in whatever case, but for names that
    are English words. Other things that tell who somebody is (addresses, numbers, places) stay.

    Args:
        chats: messages by chat, all of one export.
        seed: of the choice.
        people: names of others who may be named in texts, e.g. of senders who were left out.
    """
    messages = [message for chat in chats.values() for message in chat]
    senders = sorted({message.sender for message in messages} | set(people))
    known = {part.casefold(): sender for sender in senders for part in _parts(sender)}
    known |= {sender.casefold(): sender for sender in senders}
    handles = {found.casefold() for message in messages for found in _MENTION.findall(message.text)}
    strangers = sorted(handles - known.keys() - _EVERYBODY)
    chosen = _choose([*senders, *strangers], seed)
    others = {name: chosen[owner] for name, owner in known.items()} | {name: chosen[name] for name in strangers}
    change = _replacement(others, strangers)
    return {
        chat: [replace(message, sender=chosen[message.sender], text=change(message.text)) for message in kept]
        for chat, kept in chats.items()
    }


def _replacement(others: Mapping[str, str], strangers: Sequence[str]) -> Callable[[str], str]:
    """Puts other names into a text, all of them in one pass; strangers are only known by their mention."""
    mentions = [f"(?<=(?<![\\w@.])@){re.escape(name)}(?!\\w)" for name in strangers]
    names = sorted(others.keys() - set(strangers), key=lambda name: (-len(name), name))
    pattern = re.compile("|".join([*mentions, *map(_whole, names)]) or r"(?!)", re.IGNORECASE)

    def other(found: re.Match[str]) -> str:
        name, mentioned = found[0], found.string[: found.start()].endswith("@")
        return name if name in _WORDS and not mentioned else others.get(name.casefold(), name)

    return lambda text: pattern.sub(other, text)


def _whole(name: str) -> str:
    """The pattern of a name as a whole word."""
    left, right = (edge if _is_spaced(end) else "" for edge, end in ((r"(?<!\w)", name[0]), (r"(?!\w)", name[-1])))
    return f"{left}{re.escape(name)}{right}"


def _is_spaced(letter: str) -> bool:
    """Whether its script puts spaces between words; Thai and its neighbours, Chinese and Japanese do not."""
    code = ord(letter)
    return code < 0x0E00 or 0x10A0 <= code < 0x1780 or 0x1800 <= code < 0x2E80 or 0xAC00 <= code < 0xD7B0


def _parts(name: str) -> list[str]:
    words = re.findall(r"[^\W\d_]+", name)
    return [word for word in words if len(word) >= _SHORTEST] if len(words) > 1 else []


def _choose(people: Sequence[str], seed: int) -> dict[str, str]:
    """A name for each, by a hash of who it is; who comes later takes the next that is free."""
    real = {name.casefold() for name in people}
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in people:
        ranked = sorted(NEUTRAL, key=lambda other: hashlib.sha256(f"{seed}:{name}:{other}".encode()).digest())
        candidates = (other + (str(number) if number > 1 else "") for number in itertools.count(1) for other in ranked)
        chosen[name] = next(other for other in candidates if other not in taken and other.casefold() not in real)
        taken.add(chosen[name])
    return chosen
