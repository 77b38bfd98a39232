"""Command line: output of commands, and one line with a remedy and an exit code for each error."""

from __future__ import annotations

import ast
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.cli import run as lora_ft
from lora_ft.cli.rows import write_outputs
from lora_ft.runs.run import Run
from tests.tiny import save_tiny_t5

MakeTask = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def fails(capsys: Capture, arguments: list[Any], code: int, *parts: str) -> None:
    """Assert that a command exits with `code` and prints one error line that contains all `parts`."""
    capsys.readouterr()
    assert lora_ft([str(argument) for argument in arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]


def test_all_commands_work_in_sequence(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    task, run, merged, bundle = make_task(), tmp_path / "run", tmp_path / "merged", tmp_path / "bundle"
    assert lora_ft(["validate", str(task)]) == 0
    assert "is ready to train" in capsys.readouterr().out
    assert lora_ft(["train", str(task), "--out", str(run), "--set", "train.num_train_epochs=1"]) == 0
    assert "6 (best: 6)" in capsys.readouterr().out
    assert lora_ft(["merge", str(run), "--out", str(merged)]) == 0
    assert lora_ft(["evaluate", str(run), "--baseline", "--limit", "4"]) == 0
    shown = capsys.readouterr().out
    assert "rougeLsum" in shown and "difference" in shown and "4 test rows" in shown
    assert lora_ft(["export", str(merged), "--out", str(bundle)]) == 0
    assert "6 of 6 rows match PyTorch's text" in capsys.readouterr().out
    answers = []
    for model in (run, merged, bundle):
        assert lora_ft(["generate", str(model), "abc", "defg"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2] and len(answers[0].splitlines()) == 2


def test_validate_shows_all_errors_at_once(make_task: MakeTask, capsys: Capture) -> None:
    task = make_task(lora={"r": 0}, train={"precision": "fp16", "learning_rat": 1})
    assert lora_ft(["validate", str(task)]) == 2
    shown = capsys.readouterr().out
    assert "3 errors" in shown
    for part in ("lora.r = 0", "train.precision = 'fp16'", "transformers#5651", "train.learning_rat = 1: unknown key"):
        assert part in shown


@pytest.mark.parametrize("key", ["grid", "search"])
def test_validate_shows_all_errors_of_a_grid_and_a_search(make_task: MakeTask, capsys: Capture, key: str) -> None:
    """Their commands print the first error, and say that `validate` shows all."""
    task = make_task(**{key: {"lora.rank": [8], "train.epochs": [2]}})
    command = "train" if key == "grid" else "search"
    fails(capsys, [command, task], 2, "unknown key", "(and 1 more)", f"`lora-ft validate {task}` shows all")
    assert lora_ft(["validate", str(task)]) == 2
    shown = capsys.readouterr().out
    assert "2 errors" in shown and "lora.rank = " in shown and "train.epochs = " in shown


def test_rows_of_a_file_become_jsonl_with_their_outputs(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,id\nabc,1\ndef,2\n")
    out = tmp_path / "out.jsonl"
    assert lora_ft(["generate", str(tiny_run.folder), "--input", str(tmp_path / "in.csv"), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [list(row) for row in rows] == [["text", "id", "output"]] * 2
    assert [row["id"] for row in rows] == ["1", "2"]


def test_a_missing_argument_is_one_sentence(capsys: Capture) -> None:
    assert lora_ft(["train"]) == 2
    assert capsys.readouterr().err == "error: Missing argument 'TASK...'; see --help for commands and options\n"


def test_a_column_that_the_answers_replace_is_named(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "abc", "output": "mine"}\n')
    assert lora_ft(["generate", str(tiny_run.folder), "--input", str(tmp_path / "rows.jsonl"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)[0]["output"] != "mine"
    assert "the rows have a column 'output'" in shown.err


def test_lines_of_stdin_are_answered_on_stdout(tiny_run: Run) -> None:
    command = [sys.executable, "-m", "lora_ft", "generate", str(tiny_run.folder)]
    process = subprocess.run(command, input="abc\n\ndef\n", capture_output=True, text=True, check=True)
    assert len(process.stdout.splitlines()) == 2


def test_compare_prints_differences_and_writes_a_page(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    runs = [str(shutil.copytree(tiny_run.folder, tmp_path / name)) for name in ("one", "other")]
    for run in runs:
        assert lora_ft(["evaluate", run]) == 0
    capsys.readouterr()
    assert (
        lora_ft(["compare", *runs, "--html", str(tmp_path / "page.html"), "--metric", "rouge", "--metric", "bleu"]) == 0
    )
    shown = capsys.readouterr().out
    assert "+0.0 [+0.0, +0.0]" in shown and "1.000" in shown and "bleu" in shown and "reference:" in shown
    assert max(map(len, shown.splitlines())) <= 80 or str(tmp_path) in shown
    assert "</html>" in (tmp_path / "page.html").read_text()


def test_answers_are_wrapped_on_a_terminal_only(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["word " * 40 + "end", "short"]
    write_outputs(["a", "b"], answers, None)
    assert capsys.readouterr().out.splitlines() == answers
    write_outputs(["a", "b"], answers, None, wrap=30)
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 30 and narrow.split() == " ".join(answers).split()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    write_outputs(["a", "b"], answers, None)
    lines = capsys.readouterr().out.splitlines()
    assert 70 < max(map(len, lines)) <= 80 and lines[-1] == "short"


def test_generate_wraps_at_the_given_width(tiny_run: Run, capsys: Capture) -> None:
    assert lora_ft(["generate", str(tiny_run.folder), "abc", "--wrap", "10", "--min-new-tokens", "24"]) == 0
    assert all(len(line) <= 10 or " " not in line for line in capsys.readouterr().out.splitlines())
    fails(
        capsys,
        ["generate", tiny_run.folder, "abc", "--wrap", "20", "--stream"],
        2,
        "--wrap applies to answers on stdout",
    )


def test_evaluate_prints_json_when_asked(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    assert lora_ft(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["scores"]["rouge1"].keys() == {"mean", "low", "high"}


def test_set_changes_the_task_of_a_run_for_its_evaluation(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    assert lora_ft(["evaluate", str(run), "--json", "--set", "data.limit.test=3"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3


def test_recipes_and_doctor_print(capsys: Capture) -> None:
    assert lora_ft(["recipes"]) == 0
    assert "dialogue-summary\t" in capsys.readouterr().out
    assert lora_ft(["doctor", "--json"]) == 0
    assert {"transformers", "cores", "hub", "offline base"} <= json.loads(capsys.readouterr().out).keys()


def test_errors_in_the_task_file(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    fails(capsys, ["train", tmp_path / "no.yaml"], 2, "no task file", "recipe")
    fails(capsys, ["train", make_task(prompt="no column")], 2, "prompt", "names no column")
    fails(capsys, ["train", make_task(extra=1)], 2, "extra = 1: unknown key")
    fails(capsys, ["train", make_task(), "--set", "nonsense"], 2, "is not key.path=value")
    fails(capsys, ["train", make_task(), "--set", "train.epochs=3"], 2, "train.epochs = 3: unknown key")
    (tmp_path / "broken.yaml").write_text("name: [")
    fails(capsys, ["train", tmp_path / "broken.yaml"], 2, "is not YAML")


def test_errors_in_the_data(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    good = '{"text": "abc", "answer": "cba"}\n'
    cases: dict[str, tuple[bytes, int, str]] = {
        "empty": (good.encode() + b'{"text": "abc", "answer": "  "}\n', 1, ":2: column 'answer' is empty"),
        "null": (b'{"text": null, "answer": "x"}\n', 1, ":1: column 'text' is empty"),
        "column": (b'{"words": "abc", "answer": "x"}\n', 2, "has no column 'text'"),
        "latin": (good.encode() + b'{"text": "caf\xe9", "answer": "x"}\n', 1, ":2 is not UTF-8"),
        "cut": (good.encode() + good.encode()[:20], 1, ":2 is not JSON"),
        "none": (b"\n", 2, "has no rows"),
        "long": (json.dumps({"text": "abc", "answer": "x" * 60}).encode(), 1, "1 of 1 train targets are longer"),
    }
    for name, (content, code, part) in cases.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_bytes(content)
        out = tmp_path / name
        fails(capsys, ["train", make_task(data={"train": str(file)}), "--out", out], code, part)
        assert not out.exists() and not out.with_name(f"{name}.unfinished").exists()
    fails(
        capsys, ["train", make_task(data={"train": "gone.jsonl"}), "--out", tmp_path / "x"], 2, "no file", "data.root"
    )
    fails(
        capsys,
        ["train", make_task(data={"train": "task.yaml"}), "--out", tmp_path / "x"],
        2,
        "has an unsupported format",
    )
    task = make_task(data={"test": None})
    assert lora_ft(["train", str(task), "--out", str(tmp_path / "r"), "--set", "train.max_steps=1"]) == 0
    fails(capsys, ["evaluate", tmp_path / "r", "--split", "test"], 2, "has no test rows", "data.test")


def test_train_warns_of_overlapping_splits(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    task = make_task(data={"test": "train.jsonl"})
    assert lora_ft(["train", str(task), "--out", str(tmp_path / "run"), "--set", "train.max_steps=1"]) == 0
    assert "24 validation or test prompts also occur in the training rows" in capsys.readouterr().err


def test_errors_in_the_base(make_task: MakeTask, tmp_path: Path, capsys: Capture) -> None:
    fails(
        capsys,
        ["train", make_task(base="google/flan-t5-small")],
        2,
        "HF_HUB_OFFLINE",
        "'offline'",
        "path of the checkpoint",
    )
    fails(capsys, ["train", make_task(base="./gone")], 2, "no base at", "offline")
    bart = save_tiny_t5(tmp_path / "bart")
    (bart / "config.json").write_text('{"model_type": "bart"}')
    fails(capsys, ["train", make_task(base=str(bart))], 2, "model_type 'bart'", "base of type t5")
    pickled = save_tiny_t5(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    fails(capsys, ["train", make_task(base=str(pickled))], 2, "has no model.safetensors", "pickles")


def test_merge_refuses_an_adapter_of_another_base(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    second_base = save_tiny_t5(tmp_path / "other", d_model=40)
    fails(capsys, ["merge", tiny_run.folder, "--out", tmp_path / "m", "--base", second_base], 1, "d_model 32", "has 40")
    assert not (tmp_path / "m").exists()


def test_generate_refuses_a_changed_bundle(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    bundle = tmp_path / "bundle"
    assert lora_ft(["export", str(tiny_run.folder), "--out", str(bundle)]) == 0
    with open(bundle / "decoder.onnx", "r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    fails(capsys, ["generate", bundle, "abc"], 1, "decoder.onnx is not the file that was published")


def test_existing_output_is_not_replaced(tiny_run: Run, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    for verb in (["merge", tiny_run.folder], ["export", tiny_run.folder], ["train", tiny_run.folder / "task.yaml"]):
        fails(capsys, [*verb, "--out", tmp_path / "taken"], 2, "already exists", "--overwrite")
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_full_disk_is_reported_and_leaves_nothing(
    tiny_run: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lora_ft.core.files.os.fsync", full)
    for verb in ("merge", "export"):
        fails(capsys, [verb, tiny_run.folder, "--out", tmp_path / verb], 1, "no space left on the disk")
        assert list(tmp_path.iterdir()) == []


def test_wrong_options_are_refused(tiny_run: Run, capsys: Capture) -> None:
    fails(capsys, ["generate", tiny_run.folder, "abc", "--num-beams", "0"], 2, "num-beams")
    fails(capsys, ["fly"], 2, "fly")
    fails(capsys, ["evaluate", tiny_run.folder, "--split", "tst"], 2, "tst")
    fails(capsys, ["generate", tiny_run.folder, "abc", "--input", "x.txt"], 2, "--input cannot be combined with texts")


def test_traceback_is_printed_only_with_debug(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lora_ft", "train", str(tmp_path / "no.yaml")]
    plain, debug = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=False) for more in ([], ["--debug"])
    )
    assert plain.returncode == debug.returncode == 2
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr and debug.stderr.endswith(plain.stderr)


def test_no_code_is_loaded_from_files() -> None:
    """Refuse pickle, code from the hub, and calls of `torch.load` that could run what a pickle holds."""
    sources = [path.read_text() for package in ("lora_ft", "export") for path in Path(package).rglob("*.py")]
    assert not any("trust_remote_code" in source or "import pickle" in source for source in sources)
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert any(ast.unparse(call.func) == "print" for call in calls)
    for call in calls:
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in map(ast.unparse, call.keywords), ast.unparse(call)
