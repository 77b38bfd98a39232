"""Errors of requests, in the form of OpenAI's interface: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lora_ft.core.errors import LoraFtError

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(LoraFtError):
    """A request that is refused or that failed.

    Attributes:
        status: HTTP status.
        param: Path of the field at fault, such as `rows[3]`, or None.
        code: Name of the error for programs.
        headers: Headers of the answer, such as Retry-After.
        reason: Reason for the log, which clients do not see.
    """

    def __init__(
        self,
        message: str,
        remedy: str = "",
        *,
        param: str | None = None,
        status: int = 400,
        code: str = "invalid_value",
        headers: Mapping[str, str] | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message, remedy)
        self.param, self.status, self.code, self.headers = param, status, code, dict(headers or {})
        self.reason = reason

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def as_request_error(error: LoraFtError, names: Mapping[str, str], param: str | None = None) -> RequestError:
    """Return an error of the model as the error of a request (status 400).

    Args:
        error: Error about options or a row.
        names: Field of the request for each option that was passed to the model. The option that the message names
            first is the field at fault.
        param: Field at fault if the message names no option.
    """
    if isinstance(error, RequestError):
        return error
    places = {option: re.search(rf"\b{re.escape(option)}\b", error.message) for option in names}
    named = sorted((place.start(), option) for option, place in places.items() if place)
    return RequestError(error.message, error.remedy, param=names[named[0][1]] if named else param)


def option_quoted(error: LoraFtError, options: Mapping[str, Any]) -> str | None:
    """Return the option that has a token or a label which the message quotes, or None."""
    if "labels" in options and re.search(r"\blabels?\b", error.message):
        return "labels"
    numbers = {int(digits) for digits in re.findall(r"\d+", error.message) if len(digits) < 20}
    for name, value in options.items():
        if name.endswith(("_ids", "_id", "_tokens", "allowed")) and numbers & set(_flat(value)):
            return name
    return None


def _flat(value: Any) -> list[int]:
    """Return the whole numbers in a value and its lists."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in _flat(item)]
    return [value] if isinstance(value, int) else []


def internal_error() -> RequestError:
    """Return the answer to an exception that nobody expected. Its text may quote the request, so it is left out."""
    return RequestError(
        "the server failed unexpectedly", "send the request id to its operator", status=500, code="internal_error"
    )
