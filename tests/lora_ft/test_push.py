"""Pushing to a Hub on 127.0.0.1: the uploaded files, one commit for all, and one-line errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import _http
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from lora_ft.bank import export_bank
from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.evaluate import evaluate
from lora_ft.export.runtime import Generator
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.merge import merge
from lora_ft.models.loading import load
from lora_ft.push import Destination, check, push
from lora_ft.runs.run import Run
from tests.fakehub import FakeHub
from tests.lora_ft.test_foreign_adapters import make

recent_client = pytest.mark.skipif(
    int(version("huggingface_hub").split(".")[0]) < 1,
    reason="the Hub's client before 1.0 (transformers 4) never retries, and downloads only from HF_ENDPOINT",
)

TOKEN = "hf_verySecretTokenOfMine"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Start an empty Hub that this process uses in place of the real Hub."""
    with FakeHub(TOKEN).running() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the fake stores large files by LFS
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))  # retries without waiting
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield fake
    getattr(_http, "close_session", lambda: None)()  # the client keeps the timeouts of the test


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return an evaluated run with files that training and a user may leave in it."""
    folder = shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("push") / "run")
    evaluate(str(folder), baseline=True)
    for name in ("checkpoint-6/optimizer.pt", "tensorboard/events.out.tfevents.1", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    return Run(folder)


@pytest.fixture(scope="module")
def merged(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merge(run, tmp_path_factory.mktemp("push") / "merged").out


@pytest.fixture(scope="module")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(str(run.folder), tmp_path_factory.mktemp("push") / "bundle").out


def to(repo: str = "me/tiny", **settings: str | bool) -> Destination:
    return Destination(repo, TOKEN, **settings)  # type: ignore[arg-type]


def download(hub: FakeHub, folder: Path, repo: str = "me/tiny") -> Path:
    """Download a repository as `hf download REPOSITORY --local-dir FOLDER` does."""
    return Path(snapshot_download(repo, endpoint=hub.endpoint, token=TOKEN, local_dir=folder / "downloaded"))


def test_run_is_pushed_with_only_listed_files_in_one_commit(hub: FakeHub, run: Run) -> None:
    pushed = push(run.folder, to())
    names = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
        "metrics.json",
        "scores-test.json",
        "task.yaml",
    ]
    assert hub.commits == [("me/tiny", "main", "Run tiny, by lora-ft", names)]
    assert (pushed.kind, pushed.repo, pushed.files) == ("run", "me/tiny", 7)
    assert pushed.url.startswith(f"{hub.endpoint}/me/tiny/commit/")
    sent, local = hub.files("me/tiny"), run.adapter / "adapter_model.safetensors"
    assert sent["adapter_model.safetensors"] == local.read_bytes() and len(hub.large) == 1  # by LFS
    assert sent["log.jsonl"] == (run.folder / "log.jsonl").read_bytes()
    assert sum(map(len, sent.values())) == pushed.bytes


def test_predictions_are_pushed_only_on_request(hub: FakeHub, run: Run) -> None:
    push(run.folder, to(predictions=True))
    name = "predictions-test.jsonl"
    assert hub.files("me/tiny")[name] == (run.folder / name).read_bytes()


def test_bundle_is_pushed_with_unchanged_files_of_its_manifest(hub: FakeHub, bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    push(bundle, to())
    sent = hub.files("me/tiny")
    assert set(sent) == {path.name for path in bundle.iterdir()} - {"notes.txt"}
    changed = {name for name in sent if sent[name] != (bundle / name).read_bytes()}
    assert changed == {"README.md", "manifest.json"}


def test_checkpoint_is_pushed_with_all_its_files(hub: FakeHub, merged: Path) -> None:
    push(merged, to())
    assert set(hub.files("me/tiny")) == {path.name for path in merged.iterdir()}
    assert hub.files("me/tiny")["model.safetensors"] == (merged / "model.safetensors").read_bytes()


def test_checkpoint_of_a_peft_adapter_is_pushed_without_a_task(hub: FakeHub, tiny_base: Path, tmp_path: Path) -> None:
    merged = merge(
        make(tiny_base, tmp_path / "theirs", target_modules=["q"]), tmp_path / "out", base=str(tiny_base)
    ).out
    assert push(merged, to()).kind == "checkpoint"
    assert set(hub.files("me/tiny")) == {path.name for path in merged.iterdir()}
    assert hub.commits[0][2] == "Checkpoint theirs, by lora-ft"
    assert all(str(tmp_path).encode() not in data for data in hub.files("me/tiny").values())


@pytest.mark.parametrize("layout", ["optimum", "single"])
def test_layouts_are_pushed_with_the_files_of_their_record(hub: FakeHub, run: Run, tmp_path: Path, layout: str) -> None:
    out = export_onnx(str(run.folder), tmp_path / "out", layout=layout, triton=layout == "single").out
    push(out, to())
    record = json.loads((out / "lora-ft.json").read_text())
    assert set(hub.files("me/tiny")) >= {*record["files"], "lora-ft.json", "README.md"}
    assert "sbom.cdx.json" in record["files"]
    assert any("config.pbtxt" in name for name in record["files"]) == (layout == "single")


def test_no_pushed_file_contains_a_local_path(
    hub: FakeHub, run: Run, merged: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = str(tmp_path_factory.getbasetemp()).encode()
    assert root in (run.folder / "task.yaml").read_bytes()  # otherwise this test would prove nothing
    for folder in (run.folder, merged, bundle):
        push(folder, to(f"me/{folder.name}"))
        for name, content in hub.files(f"me/{folder.name}").items():
            assert root not in content, (folder.name, name)


@recent_client
def test_pushed_bank_contains_no_local_path_and_keeps_its_tasks(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    export_bank([str(run.folder)], tmp_path / "bank")
    push(tmp_path / "bank", to("me/bank"))
    sent = hub.files("me/bank")["manifest.json"].decode()
    assert str(run.task.data.root) not in sent and str(Path(run.task.base).parent) not in sent
    copy = download(hub, tmp_path, "me/bank")
    evaluation = evaluate(str(copy), adapter="tiny", overrides=[f"data.root={run.task.data.root}"])
    assert evaluation.scores == evaluate(str(tmp_path / "bank"), adapter="tiny").scores


@recent_client
def test_downloaded_bundle_generates_the_same_answers(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    push(bundle, to())
    prompts = ["say: abc", "say: xyz"]
    assert Generator.load(download(hub, tmp_path)).generate(prompts) == Generator.load(bundle).generate(prompts)


@recent_client
def test_downloaded_run_is_loaded_by_lora_ft_and_by_peft(
    hub: FakeHub, run: Run, tiny_base: Path, tmp_path: Path
) -> None:
    """The run's base is a folder, so the pushed task names a folder of the same name next to it."""
    push(run.folder, to())
    copy = download(hub, tmp_path)
    assert Run(copy).task.base == str(copy / tiny_base.name)
    (copy / tiny_base.name).symlink_to(tiny_base)
    rows = [{"text": "abc"}, {"text": "defg"}]
    assert generate(load(str(copy)), rows, {}) == generate(load(str(run.folder)), rows, {})
    PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(tiny_base), str(copy))


@recent_client
def test_downloaded_checkpoint_generates_the_same_answers(hub: FakeHub, merged: Path, tmp_path: Path) -> None:
    push(merged, to())
    rows = [{"text": "abc"}]
    assert generate(load(str(download(hub, tmp_path))), rows, {}) == generate(load(str(merged)), rows, {})


def test_pushed_card_loads_from_the_hub_and_an_edited_card_stays_unchanged(
    hub: FakeHub, run: Run, bundle: Path, tmp_path: Path
) -> None:
    push(run.folder, to())
    assert '\nwhere = "me/tiny"\n' in hub.files("me/tiny")["README.md"].decode()
    push(bundle, to("me/onnx"))
    assert '\nfolder = snapshot_download("me/onnx")\n' in hub.files("me/onnx")["README.md"].decode()
    edited = Path(shutil.copytree(run.folder, tmp_path / "edited"))
    text = (edited / "README.md").read_text().replace("## Limits", "## What it cannot do")
    (edited / "README.md").write_text(text)
    push(edited, to("me/edited"))
    assert hub.files("me/edited")["README.md"].decode() == text


def test_repository_may_be_private_with_a_short_name_and_a_branch(hub: FakeHub, run: Run) -> None:
    pushed = push(run.folder, to("tiny", private=True, branch="second", message="A better one"))
    assert pushed.repo == "me/tiny" and hub.private == {"me/tiny": True}
    assert hub.commits[0][:3] == ("me/tiny", "second", "A better one")
    assert hub.files("me/tiny") == {}  # main


def test_second_push_adds_a_commit(hub: FakeHub, run: Run) -> None:
    push(run.folder, to())
    push(run.folder, to(branch="main"))
    assert len(hub.commits) == 2


FAILURES = {
    "unknown token": ("repos/create", 401, "Invalid username or password.", "the Hub rejects HF_TOKEN"),
    "no right": (
        "repos/create",
        403,
        "Not your repository",
        "HF_TOKEN has no write access to me/tiny: Not your repository",
    ),
    "no right to commit": ("/commit/", 403, "Forbidden", "HF_TOKEN has no write access to me/tiny"),
    "gone": ("preupload", 404, "Repository not found", "me/tiny does not exist on the Hub"),
    "conflict": ("/commit/", 409, "Conflict", "is being changed by another client"),
    "broken": ("repos/create", 500, "Internal Error", "the Hub failed (HTTP 500): Internal Error"),
    "broken while storing": ("/upload/", 503, "Slow down", "the Hub failed (HTTP 503)"),
    "too often": ("/commit/", 429, "Too many", "rate-limited by the Hub (HTTP 429)"),
    "too large": ("/commit/", 413, "Payload too large", "rejects the request (HTTP 413): Payload too large"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_is_one_line_with_the_command_to_repeat(
    hub: FakeHub, run: Run, failure: str, capsys: Capture
) -> None:
    path_part, status, answer, expected = FAILURES[failure]
    hub.failures[path_part] = (status, answer)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert lora_ft(["push", str(run.folder), "me/tiny"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and expected in lines[0]
    assert f"repeat with `lora-ft push {run.folder} me/tiny`" in lines[0]
    assert not hub.commits and not any(files for files in hub.branches.get("me/tiny", {}).values())
    assert before == {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    hub.failures.clear()
    push(run.folder, to())
    assert len(hub.commits) == 1


@recent_client
def test_temporary_failures_are_retried_by_the_client(hub: FakeHub, run: Run) -> None:
    hub.passing = {"preupload": (503, "busy"), "/upload/": (500, "oops")}
    push(run.folder, to())
    assert not hub.passing and len(hub.commits) == 1


@pytest.mark.skipif(not hasattr(_http, "close_session"), reason="clients before 1.0 have no timeout to set")
def test_stalled_hub_times_out(hub: FakeHub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stalled = 2
    monkeypatch.setattr(sys.modules["lora_ft.push"], "TIMEOUT", 0.2)
    with pytest.raises(LoraFtError, match=r"the push to me/tiny failed \(\w*Time\w*\)"):
        push(run.folder, to())


def test_unreachable_hub_is_an_error(hub: FakeHub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LoraFtError, match=r"the push to me/tiny failed \(Connect"):
        push(run.folder, to())


def test_card_that_the_hub_rejects_is_not_pushed(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    (folder / "README.md").write_text("---\nbase_model: /home/me/base\n---\n")
    with pytest.raises(LoraFtError, match=r'the Hub rejects the card: - "base_model" with value "/home/me/base"'):
        push(folder, to())
    assert not hub.commits and not hub.large


def test_invalid_folders_repositories_and_tokens_are_refused(
    hub: FakeHub, run: Run, tmp_path: Path, tiny_base: Path
) -> None:
    with pytest.raises(UsageError, match="neither a run, a merged checkpoint nor a bundle"):
        push(tiny_base, to())
    with pytest.raises(UsageError, match="not a valid repository name"):
        to("a/b/c")
    with pytest.raises(UsageError, match="HF_TOKEN is not set, which a push to the Hub needs; create a token"):
        Destination("me/tiny", "")
    assert not hub.requests


def test_damaged_bundle_is_not_pushed(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (damaged / "config.json").write_text("{}")
    with pytest.raises(LoraFtError, match="is not the file that was published"):
        push(damaged, to())
    assert not hub.requests


def test_offline_mode_is_respected(hub: FakeHub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set; unset it"):
        push(run.folder, to())


def test_token_is_checked_before_the_work(hub: FakeHub) -> None:
    check(to())
    with pytest.raises(LoraFtError, match="the Hub rejects HF_TOKEN"):
        check(Destination("me/tiny", "hf_another"))
    assert [path for _, path in hub.requests] == ["/api/whoami-v2"] * 2


def test_token_is_not_in_the_repr_of_a_destination() -> None:
    assert TOKEN not in repr(to())


@pytest.mark.parametrize("debug", ["", "--debug"])
def test_token_is_never_printed(hub: FakeHub, run: Run, debug: str) -> None:
    """The token stays hidden even if the Hub repeats it, or if the client logs every request."""
    hub.failures["/commit/"] = (403, f"the token {TOKEN} may only read")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_DEBUG": "1",
        "HF_HUB_VERBOSITY": "debug",
    }
    command = [sys.executable, "-m", "lora_ft", "push", str(run.folder), "me/tiny", *debug.split()]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (
        process.returncode == 1
        and "HF_TOKEN has no write access to me/tiny: the token (HF_TOKEN) may only read" in process.stderr
    )
    assert ("HubError" in process.stderr) == bool(debug)
    assert TOKEN not in process.stdout + process.stderr


def test_merge_and_export_push_their_results(hub: FakeHub, run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "merged")
    assert lora_ft(["merge", str(run.folder), "--out", out, "--push-to-hub", "me/merged", "--private"]) == 0
    shown = capsys.readouterr().out
    assert "me/merged: checkpoint, 8 files" in shown and f"{hub.endpoint}/me/merged/commit/" in shown
    assert hub.private == {"me/merged": True}
    assert lora_ft(["export", out, "--out", str(tmp_path / "bundle"), "--push-to-hub", "me/onnx"]) == 0
    assert "manifest.json" in hub.files("me/onnx")


def test_job_does_not_start_if_its_push_would_fail(
    hub: FakeHub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    arguments = ["merge", str(run.folder), "--out", str(tmp_path / "out"), "--push-to-hub", "me/merged"]
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert lora_ft(arguments) == 1
    monkeypatch.delenv("HF_TOKEN")
    assert lora_ft(arguments) == 2
    assert "HF_TOKEN is not set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("token", ["hf_first\nsecond", "hf_first second", "hf_ünïcode", "hf_tab\tbed"])
def test_token_with_invalid_characters_is_refused_without_printing_it(token: str) -> None:
    with pytest.raises(UsageError, match="HF_TOKEN contains characters") as error:
        Destination("me/demo", token)
    assert token[:4] not in str(error.value).replace("HF_TOKEN", "")
