"""A signature detects every change in a signed folder, including the card and the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="model-signing is not installed: pip install 'lora-ft[sign]'")
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from lora_ft.cli import run
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.deployment.signing import SIGNATURE, check_signature, sign
from lora_ft.export_onnx import export_onnx


def make_key(folder: Path, name: str, private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[Path, Path]:
    """Write a private key and its public key, and return their paths."""
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return secret, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_key(tmp_path_factory.mktemp("keys"), "key", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def signed(tiny_base: Path, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("signed") / "bundle"
    assert run(["export", str(tiny_base), "--out", str(out), "--sign", str(keys[0])], debug=False) == 0
    return out


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(signed, tmp_path / "elsewhere")


def test_copy_of_a_signed_bundle_is_verified(
    copy: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(copy), "--key", str(keys[1])], debug=False) == 0
    assert "signed by the owner of" in capsys.readouterr().out


def test_changed_byte_of_any_file_is_detected(copy: Path, keys: tuple[Path, Path]) -> None:
    for path in [path for path in copy.iterdir() if path.is_file()]:
        content = path.read_bytes()
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(LoraFtError, match="is not valid"):
            check_signature(copy, keys[1])
        path.write_bytes(content)
    check_signature(copy, keys[1])


@pytest.mark.parametrize("change", ["added", "hidden", "removed"])
def test_added_and_removed_files_are_detected(copy: Path, keys: tuple[Path, Path], change: str) -> None:
    if change == "removed":
        (copy / "README.md").unlink()
    else:
        (copy / {"added": "more.txt", "hidden": ".gitignore"}[change]).write_text("more")
    with pytest.raises(LoraFtError, match="is not valid"):
        check_signature(copy, keys[1])


def test_another_key_and_a_missing_signature_are_refused(
    copy: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, other_key = make_key(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(LoraFtError, match="is not valid"):
        check_signature(copy, other_key)
    (copy / SIGNATURE).unlink()
    assert run(["verify", str(copy), "--key", str(keys[1])], debug=False) == 1
    assert "is not signed" in capsys.readouterr().err


def test_layouts_are_signed(tiny_base: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    out = export_onnx(str(tiny_base), tmp_path / "single", layout="single").out
    sign(out, keys[0])
    assert run(["verify", str(out), "--key", str(keys[1])], debug=False) == 0
    (out / "README.md").write_text("other")
    assert run(["verify", str(out), "--key", str(keys[1])], debug=False) == 1


def test_unsuitable_key_is_refused_before_the_export(tiny_base: Path, tmp_path: Path) -> None:
    secret, public = make_key(tmp_path, "rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    for key in (secret, public, tmp_path / "none.pem"):
        out = tmp_path / "out"
        assert run(["export", str(tiny_base), "--out", str(out), "--sign", str(key)], debug=False) == 2
        assert not out.exists()
    with pytest.raises(UsageError, match="elliptic"):
        sign(tmp_path, secret)
