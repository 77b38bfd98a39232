"""WhatsApp's dates and halves of the day as phones of several languages write them."""

from __future__ import annotations

import datetime
from pathlib import Path

from lora_ft.data.chats.formats import read_chats

LONG = ["9:05", "9:07", "9:09", "13:00", "13:02", "20:10", "20:12", "20:15"]
CLOCKS = {
    "arabic-android": "20 9:05, 20 13:05, 21 19:05",
    "arabic-ios": "20 9:05, 20 13:05, 21 19:05",
    "bulgarian": "20 9:05, 20 10:05, 20 19:05",
    "turkish-12h": "20 9:05, 20 10:05, 20 13:05, 20 19:05",
    "zh-tw": "20 9:05, 20 10:05, 20 12:05, 20 13:05, 20 19:05, 20 20:05",
    "zh-tw-long": ", ".join(f"{day} {clock}" for day in range(15, 21) for clock in LONG),
}


def check_every_message_at_its_time_in_the_order_of_the_file(folder: Path, scratch: Path) -> None:
    for name, expected in CLOCKS.items():
        (messages,) = read_chats(folder / f"{name}.txt").values()
        times = [datetime.datetime.fromtimestamp(message.time, datetime.UTC) for message in messages]
        assert {f"{time:%Y-%m}" for time in times} == {"2023-11"}, name
        assert ", ".join(f"{time.day} {time.hour}:{time:%M}" for time in times) == expected, name
        assert [message.sender for message in messages] == ["Ana", "Ben"] * (len(times) // 2) + ["Ana"] * (
            len(times) % 2
        )
    assert [message.text for message in messages[:3]] == ["m0 at 9:05", "m1 at 9:07", "m2 at 9:09"]
