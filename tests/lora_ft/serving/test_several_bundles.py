"""One process with a classification, a chat and a summary, over TLS and with a key."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lora_ft.export.runtime import Generator
from tests.export.oracle import make_bundle
from tests.lora_ft.serving.server_process import ServerProcess, server_process

KEY = "a-key-of-a-team"
LABELS = ("yes", "no", "maybe")


@dataclass
class Served:
    """A server over TLS.

    Attributes:
        process: The server.
        client: HTTP client that trusts its certificate.
        folder: Folder of its bundles.
    """

    process: ServerProcess
    client: httpx.Client
    folder: Path


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate of 127.0.0.1 and its private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return cert_file, key_file


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("several")
    make_bundle(checkpoint, root / "kinds", labels=LABELS)
    make_bundle(checkpoint, root / "talk", template="{context}", chat={"context": 2, "characters": 40})
    make_bundle(checkpoint, root / "summary")
    certificate, key = write_certificate(root)
    options = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--threads", "1"]
    bundles = [str(root / "kinds"), str(root / "talk"), f"short={root / 'summary'}"]
    with server_process(*bundles, *options, LORA_FT_API_KEY=KEY) as process:
        context = ssl.create_default_context(cafile=str(certificate))
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=process.url, verify=context, headers=headers, timeout=60) as client:
            yield Served(process, client, root)


def test_every_bundle_is_a_model(served: Served) -> None:
    assert served.process.url.startswith("https://")
    models = {model["id"]: model["task"] for model in served.client.get("/v1/models").json()["data"]}
    assert list(models) == ["kinds", "talk", "short"]
    assert models["kinds"]["labels"] == list(LABELS)
    assert [models[name]["chat"] for name in models] == [False, True, False]
    assert models["short"] == {
        "columns": ["text"],
        "labels": [],
        "chat": False,
        "source_length": 48,
        "max_new_tokens": 12,
        "precision": "fp32",
    }
    assert served.client.get("/v1/models", headers={"Authorization": "Bearer other"}).status_code == 401


def test_a_classification_has_probabilities(served: Served) -> None:
    generator = Generator.load(served.folder / "kinds", threads=1)
    body = {"model": "kinds", "rows": [{"text": "hello"}, {"text": "good bye"}], "label_scores": True}
    reply = served.client.post("/v1/generate", json=body).json()
    assert [answer["text"] for answer in reply["answers"]] == generator.generate(["say: hello", "say: good bye"])
    for answer, scores in zip(reply["answers"], reply["label_scores"], strict=True):
        assert set(scores) == set(LABELS)
        assert sum(scores.values()) == pytest.approx(1)
        assert answer["text"] in LABELS


def test_a_chat_reads_its_last_lines(served: Served) -> None:
    generator = Generator.load(served.folder / "talk", threads=1)
    client = openai.OpenAI(base_url=f"{served.process.url}/v1", api_key=KEY, http_client=served.client)
    messages = [{"role": "user", "name": name, "content": text} for name, text in (("A", "x"), ("B", "y"), ("C", "z"))]
    reply = client.chat.completions.create(model="talk", messages=messages)
    assert [reply.choices[0].message.content] == generator.generate(["B: y\nC: z"])
    chunks = client.chat.completions.create(model="talk", messages=messages, stream=True)
    streamed = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert streamed == reply.choices[0].message.content
