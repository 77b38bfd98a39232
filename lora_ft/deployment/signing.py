"""Signatures of exported folders, by OpenSSF's model-signing with an elliptic-curve key.

The hashes in a manifest reveal damage, but do not prove the author of a bundle. Anyone who changes a file can change
its hash too, and the model card and the manifest have no hash. A signature covers every file of the folder, including
these two, and only the owner of the private key can create it. It is created once, over the finished folder. Later
changes require a new signature, such as adding an adapter to a bank, or the rewriting of paths in `push`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_ft.core.errors import LoraFtError, UsageError, first_line

SIGNATURE = "model.sig"
_EXTRA = "pip install 'lora-ft[sign]'"


def check_key(key: Path) -> None:
    """Raise UsageError unless a file contains a private key for signing. Jobs call it before they start work."""
    _library()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(_read(key), password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{key} is not an unencrypted private key in PEM form", _key_remedy(key)) from error
    if not isinstance(private, EllipticCurvePrivateKey):
        raise UsageError(f"{key} is not an elliptic-curve key", _key_remedy(key))


def sign(folder: Path, key: Path) -> Path:
    """Sign every file of a folder, and return the signature's path.

    Args:
        folder: Finished folder. An older signature in it is replaced.
        key: Private elliptic-curve key (PEM, without a password).

    Raises:
        UsageError: The key cannot be used, or model-signing is not installed.
        LoraFtError: Signing failed.
    """
    check_key(key)
    library, path = _library(), folder / SIGNATURE
    try:
        config = library.signing.Config().use_elliptic_key_signer(private_key=key)
        config.set_hashing_config(_hashing(path)).sign(folder, path)
    except (OSError, ValueError) as error:
        raise LoraFtError(f"{folder} could not be signed ({first_line(error)})", "check its permissions") from error
    return path


def check_signature(folder: Path, key: Path) -> None:
    """Check the signature of a folder.

    Args:
        folder: Folder signed by `sign`.
        key: Public key of the signer (PEM).

    Raises:
        UsageError: The key cannot be read, or model-signing is not installed.
        LoraFtError: There is no signature, it belongs to another key, or a file was changed, added or removed.
    """
    library, path = _library(), folder / SIGNATURE
    _read(key)
    if not path.is_file():
        raise LoraFtError(
            f"{folder} is not signed ({SIGNATURE} is missing)", "export it with --sign, or leave out --key"
        )
    try:
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
        config.set_hashing_config(_hashing(path)).verify(folder, path)
    except Exception as error:  # the library's parsers raise many kinds
        raise LoraFtError(
            f"the signature of {folder} is not valid for {key} ({first_line(error)})",
            "do not use this copy; get it again from its signer",
        ) from error


def _library() -> Any:
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise UsageError("signatures need the package model-signing, which is not installed", _EXTRA) from error
    return model_signing


def _hashing(signature: Path) -> Any:
    """Return a configuration that hashes every file except the signature. The library's default skips .git files."""
    config = _library().hashing.Config()
    return config.set_ignored_paths(paths=[signature], ignore_git_paths=False)


def _read(key: Path) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise UsageError(f"the key {key} cannot be read ({first_line(error)})", _key_remedy(key)) from error


def _key_remedy(key: Path) -> str:
    return f"create one with `openssl ecparam -name prime256v1 -genkey -noout -out {key.name}`"
