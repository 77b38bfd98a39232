"""Quick check that the Hub answers, which takes seconds instead of the retries of its client."""

from __future__ import annotations

import functools

from lora_ft.core.errors import UsageError

TIMEOUT = 4.0


@functools.cache
def hub_trouble() -> str | None:
    """Return why the Hub cannot be used, or None if it answers. The result is cached for the whole process."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # of requests or httpx, depending on the version of huggingface_hub
        return f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
    return None


def require_hub(resource: str, alternative: str) -> None:
    """Raise UsageError at once if the Hub cannot be reached.

    Args:
        resource: Model or data set to load from the Hub, for the message.
        alternative: Local substitute for it, for the remedy.
    """
    trouble = hub_trouble()
    if trouble:
        raise UsageError(f"{resource} is on the Hub, but {trouble}", f"check the network, or use {alternative}")
