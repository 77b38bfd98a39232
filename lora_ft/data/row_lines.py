"""Rows as lines of jsonl, whatever types their cells have."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from lora_ft.core.tokenizer import whole


def row_line(row: Mapping[str, Any]) -> str:
    """Return a row as JSON. Lone surrogates, which UTF-8 cannot encode, are escaped."""
    plain = _plain(row)
    text = json.dumps(plain, ensure_ascii=False)
    return text if text == whole(text) else json.dumps(plain)


def _plain(value: Any) -> Any:
    """Return a cell in the types of JSON: times in ISO 8601, bytes in base64, decimals as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value if value is None or isinstance(value, str | int) else str(value)
