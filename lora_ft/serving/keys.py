"""API keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from lora_ft.core.errors import UsageError
from lora_ft.serving.errors import RequestError

VARIABLE = "LORA_FT_API_KEY"
_SCHEME = "bearer "


class ApiKeys:
    """Keys that a request may carry; none means that every request is accepted.

    Only digests are kept. Comparing two digests takes the same time for every wrong key, and every key is compared. So
    the time of an answer reveals nothing about the keys.

    Args:
        keys: Keys.
    """

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in dict.fromkeys(keys)]

    @classmethod
    def read(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> ApiKeys:
        """Return the keys of the environment and of a file.

        Args:
            file: File with one key a line; empty lines and lines that begin with # are skipped.
            environment: Variables; LORA_FT_API_KEY holds keys separated by white space.

        Raises:
            UsageError: The file cannot be read or has no key.
        """
        keys = environment.get(VARIABLE, "").split()
        if VARIABLE in environment and not keys:
            raise UsageError(f"{VARIABLE} is empty", "set a key, or unset it")
        if file is not None:
            keys += _keys_of(file)
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def require(self, authorization: str | None) -> None:
        """Raise RequestError unless a header Authorization carries one of the keys, or there are none."""
        if not self._digests:
            return
        sent = authorization or ""
        bearer = sent[: len(_SCHEME)].lower() == _SCHEME
        digest = _digest(sent[len(_SCHEME) :].strip() if bearer else "")
        matches = [hmac.compare_digest(digest, stored) for stored in self._digests]
        if not (bearer and any(matches)):
            raise RequestError(
                "the API key is wrong" if bearer else "the API key is missing",
                "send the header `Authorization: Bearer KEY`",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _keys_of(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 (byte {error.start})", "save it as UTF-8, one key a line") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})", "give a file with one key a line") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise UsageError(f"{file} has no key", "write one key a line")
    return keys
