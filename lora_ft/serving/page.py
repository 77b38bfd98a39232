"""The page at `/`: one static file. It loads nothing from anywhere, and its policy lets the browser load nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path


def _hash_of(tag: str) -> str:
    """Return the hash of the page's only inline `tag`, in the form of a content security policy."""
    match = re.search(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    assert match is not None, f"the page has no <{tag}>"
    return f"'sha256-{base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()}'"


PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
POLICY = (
    f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
