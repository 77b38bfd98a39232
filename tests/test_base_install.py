"""The base install runs bundles: every command for it, without the extras, and on the lowest versions allowed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from lora_ft.export.onnx.graph import MINIMUM_ONNXRUNTIME
from tests.export.oracle import TEXTS, make_bundle, ragged, redraw, torch_greedy, torch_model
from tests.lora_ft.serving.server_process import server_process
from tests.tiny import save_tiny_t5

ROOT = Path(__file__).parents[1]
OLDEST = Path(os.environ.get("LORA_FT_OLDEST", ROOT / ".venv-oldest" / "bin" / "python"))
EXTRAS = (
    "torch",
    "llguidance",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "evaluate",
    "rouge_score",
    "sacrebleu",
    "regex",
    "nltk",
    "sentencepiece",
    "safetensors",
    "pydantic",
    "ijson",
    "lxml",
    "tensorboard",
    "onnx",
    "ray",
    "jsonschema",
    "fhir",
    "pandas",
    "pyarrow",
    "starlette",
    "uvicorn",
    "prometheus_client",
)
# An import of None is refused as one of a package that is not installed, and `find_spec` finds none.
HIDE = "import sys\nsys.modules.update(dict.fromkeys({!r}))\n"
# Newer typers come with pydantic; the jobs themselves must do without it.
RUN = HIDE.format([name for name in EXTRAS if name != "pydantic"])
COMMAND = RUN + "from lora_ft.cli import main\nmain()"
GENERATE = """
import json, sys
from lora_ft.export.runtime import Generator
generator = Generator.load(sys.argv[1], threads=1)
texts = json.loads(sys.argv[2])
print(json.dumps([generator.generate(texts, **options) for options in json.loads(sys.argv[3])]))
"""
SINGLE = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
feed = {name: np.array(value) for name, value in json.loads(sys.argv[2]).items()}
feed = {entry.name: feed[entry.name].astype(types[entry.type]) for entry in session.get_inputs()}
print(json.dumps(session.run(["sequences"], feed)[0].tolist()))
"""
OPTIONS = (
    {},
    {"num_beams": 3},
    {"do_sample": True, "seed": 1, "top_p": 0.9},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 4},
    {"prompt_lookup": True},
)
PUBLIC = """
from lora_ft.export.runtime import native_session
native_session.is_available = lambda: False
"""
VERBS = ("generate", "chat", "verify", "doctor", "export", "train", "bank", "evaluate")


@pytest.fixture(scope="module")
def oldest() -> str:
    """Return the interpreter whose environment has the lowest versions, of the base install and the extra `serve`."""
    if not OLDEST.is_file():
        pytest.skip("the environment of the lowest versions is not installed: make test-oldest")
    return str(OLDEST)


@pytest.fixture(scope="module", params=["without the extras", "oldest"])
def interpreter(request: pytest.FixtureRequest) -> Sequence[str]:
    """Return the command of an interpreter that runs bundles without the other extras."""
    return [request.getfixturevalue("oldest") if request.param == "oldest" else sys.executable]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw(save_tiny_t5(tmp_path_factory.mktemp("base-install") / "tiny"), seed=4, end=1.5)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base-install") / "bundle"
    make_bundle(checkpoint, out, chat={"context": 3})
    return out


def python(interpreter: Sequence[str], script: str, *arguments: str, text: str = "", **environment: str) -> str:
    """Run a script and return its output. If it fails, show its errors."""
    process = subprocess.run(
        [*interpreter, "-c", script, *arguments],
        input=text,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=120,
    )
    assert process.returncode == 0, process.stderr + process.stdout
    assert "Traceback" not in process.stderr
    return process.stdout


@pytest.mark.parametrize("options", [(), ("--stream",), ("--num-beams", "3"), ("--min-new-tokens", "3")])
def test_generate_prints_the_answers_of_the_bundle(
    interpreter: Sequence[str], bundle: Path, options: tuple[str]
) -> None:
    from lora_ft.export.runtime import Generator

    settings = {"--num-beams": {"num_beams": 3}, "--min-new-tokens": {"min_new_tokens": 3}}
    sampling = settings.get(options[0], {}) if options else {}
    expected = Generator.load(bundle, threads=1).generate(["say: hello"], **sampling)
    printed = python(interpreter, COMMAND, "generate", str(bundle), "hello", *options)
    assert printed.splitlines() == expected


def test_verify_passes(interpreter: Sequence[str], bundle: Path) -> None:
    assert "4 of 4 rows match PyTorch's text" in python(interpreter, COMMAND, "verify", str(bundle))


def test_chat_continues_a_conversation(interpreter: Sequence[str], bundle: Path) -> None:
    assert python(interpreter, COMMAND, "chat", str(bundle), text="Ana: hello\n/quit\n").strip()


def test_doctor_lists_installed_packages(interpreter: Sequence[str]) -> None:
    assert "onnxruntime" in python(interpreter, COMMAND, "doctor", HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_command_has_help(interpreter: Sequence[str], verb: str) -> None:
    assert "Usage:" in python(interpreter, COMMAND, *verb.split(), "--help")


@pytest.mark.parametrize("names", ["", PUBLIC], ids=["private", "public"])
def test_every_decoding_method_returns_the_same_text(interpreter: Sequence[str], bundle: Path, names: str) -> None:
    """Check this with the private names of onnxruntime, and with a version that lacks them."""
    from lora_ft.export.runtime import Generator

    generator = Generator.load(bundle, threads=1)
    expected = [generator.generate(TEXTS, **options) for options in OPTIONS]
    arguments = str(bundle), json.dumps(TEXTS), json.dumps(OPTIONS)
    assert json.loads(python(interpreter, RUN + names + GENERATE, *arguments)) == expected


def test_the_server_answers_as_the_bundle_does(oldest: str, bundle: Path) -> None:
    from lora_ft.export.runtime import Generator

    expected = Generator.load(bundle, threads=1).generate(TEXTS, batch_size=1)
    with server_process(str(bundle), "--threads", "1", interpreter=oldest, PYTHONPATH=str(ROOT)) as server:
        client = server.client()
        whole = client.completions.create(model="bundle", prompt=TEXTS)
        assert [choice.text for choice in whole.choices] == expected
        for text, answer in zip(TEXTS, expected, strict=True):
            chunks = client.completions.create(model="bundle", prompt=text, stream=True)
            assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == answer
        assert server.post("/v1/generate", model="bundle", rows=TEXTS, raw=True).json()["answers"]
        assert "lora_ft_requests_total" in httpx.get(f"{server.url}/metrics").text
        assert server.post("/v1/completions", model="nothing", prompt="a").status_code == 404


def test_private_names_of_onnxruntime_exist(interpreter: Sequence[str]) -> None:
    script = "from lora_ft.export.runtime import native_session\nprint(native_session.is_available())"
    assert python(interpreter, RUN + script).strip() == "True"


def test_the_layout_single_answers_padded_rows_as_pytorch_does(
    interpreter: Sequence[str], checkpoint: Path, tmp_path: Path
) -> None:
    make_bundle(checkpoint, tmp_path / "out", layout="single")
    ids, mask = ragged([[5, 9, 30, 8, 44, 1], [7, 1], [9, 20, 11, 1]])
    settings: Mapping[str, object] = {
        "min_new_tokens": 0,
        "max_new_tokens": 12,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "uniform": [[]],
    }
    feed = json.dumps({"input_ids": ids.tolist(), "attention_mask": mask.tolist(), **settings})
    outputs = json.loads(python(interpreter, RUN + SINGLE, str(tmp_path / "out" / "generate.onnx"), feed))
    assert np.array_equal(outputs, torch_greedy(torch_model(checkpoint), ids, mask, 12))


def test_jobs_on_bundles_import_no_extra() -> None:
    python(
        [sys.executable], HIDE.format(EXTRAS) + "import lora_ft.generate, lora_ft.chat, lora_ft.verify, lora_ft.doctor"
    )


def test_the_lowest_allowed_versions_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["constrained"], *extras["serve"]]
    allowed = dict(re.split(r">=", entry) for entry in declared)
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tested.keys() == allowed.keys()
    for name, version in tested.items():
        assert re.sub(r"(\.0)+$", "", version) == re.sub(r"(\.0)+$", "", allowed[name]), name
    assert allowed["onnxruntime"] == MINIMUM_ONNXRUNTIME
