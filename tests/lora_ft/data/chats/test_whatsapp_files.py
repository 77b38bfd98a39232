"""Zip files of WhatsApp: the text of the chat, and files without a text, encrypted or damaged."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.data.chats.formats import find_format, read_chats

CHAT = "[31.12.23, 22:15:30] Ana: hello\r\n"


def pack(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "files",
    [
        {"_chat.txt": CHAT},
        {"_chat.txt": CHAT, "00000003-notes.txt": "twine", "data.json": "{}"},
        {"_chat.txt": CHAT, "WhatsApp Chat with Ben.txt": CHAT + CHAT},
        {"Garden/_chat.txt": CHAT, "__MACOSX/Garden/._chat.txt": "x"},
        {"WhatsApp-Chat mit Garden.txt": CHAT, "notes.txt": "twine", "Media/WhatsApp/more.txt": "x"},
        {"Garden.TXT": CHAT},
        {"Garden.txt": CHAT, "notes.txt": "twine"},
    ],
)
def test_chat_is_found_among_its_attachments(tmp_path: Path, files: dict[str, str]) -> None:
    for name in ("Garden.zip", "Garden.ZIP"):
        file = pack(tmp_path / name, files)
        assert find_format(file) == "whatsapp"
        assert [message.text for message in read_chats(file)["Garden"]] == ["hello"]


def test_an_unpacked_export_is_read(tmp_path: Path) -> None:
    (tmp_path / "Garden" / "Media").mkdir(parents=True)
    (tmp_path / "Garden" / "WhatsApp Chat with Ana.txt").write_text(CHAT)
    (tmp_path / "Garden" / "Media" / "notes.txt").write_text("twine")
    assert find_format(tmp_path / "Garden") == "whatsapp"
    assert [message.text for message in read_chats(tmp_path / "Garden")["Garden"]] == ["hello"]


def test_several_texts_are_refused_by_name(tmp_path: Path) -> None:
    file = pack(tmp_path / "two.zip", {"a.txt": CHAT, "b.txt": CHAT})
    with pytest.raises(UsageError, match=r"two\.zip has 2 text files that may be the chat: a\.txt, b\.txt"):
        read_chats(file)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(pack(tmp_path / "locked.zip", {"_chat.txt": CHAT}).read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(LoraFtError, match=r"_chat\.txt cannot be unpacked \(.*encrypted.*\); unpack the zip file"):
        read_chats(tmp_path / "locked.zip")


def test_damage_raises_our_errors(tmp_path: Path) -> None:
    content = pack(tmp_path / "whole.zip", {"_chat.txt": CHAT * 20}).read_bytes()
    file = tmp_path / "damaged.zip"
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            read_chats(file, "whatsapp")
        except LoraFtError as error:
            assert "damaged.zip" in str(error)
        file.write_bytes(content[:at])
        with pytest.raises(LoraFtError, match=r"damaged\.zip is not a complete zip file"):
            read_chats(file)


def test_zip_with_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    content = bytearray(pack(tmp_path / "export.zip", {"_chat.txt": CHAT}).read_bytes())
    content[7] |= 0x08  # the local header says that its name is UTF-8, and its first byte is not
    content[30] = 0x9A
    (tmp_path / "export.zip").write_bytes(content)
    with pytest.raises(LoraFtError, match=r"_chat\.txt cannot be unpacked \(.*\); unpack the zip file"):
        read_chats(tmp_path / "export.zip")
