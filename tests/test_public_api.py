"""The names of `lora_ft`: imported lazily, always the functions, typed for the code that uses them."""

from __future__ import annotations

import ast
import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_ft
from lora_ft.core import errors
from lora_ft.tasks.files import as_task, save_task, saved_task
from tests.conftest import tiny_row

ROOT = Path(__file__).parents[1]
VERBS = (
    "compare",
    "distill",
    "evaluate",
    "export_onnx",
    "generate",
    "merge",
    "merge_adapters",
    "push",
    "search",
    "shrink",
    "train",
    "validate",
)
HEAVY = ("torch", "transformers", "onnxruntime", "numpy", "tokenizers", "pydantic", "yaml", "peft", "datasets")


def run_python(script: str) -> str:
    """Run a script in a fresh interpreter, and return what it prints."""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_import_loads_no_library() -> None:
    script = f"import sys, lora_ft; dir(lora_ft); lora_ft.LoraFtError; print([n for n in {HEAVY} if n in sys.modules])"
    assert run_python(script) == "[]\n"


def test_every_name_of_the_api_exists_and_is_listed() -> None:
    for name in lora_ft.__all__:
        assert getattr(lora_ft, name).__name__ == name if name != "__version__" else lora_ft.__version__
    assert set(lora_ft.__all__) <= set(dir(lora_ft))
    assert list(lora_ft.__all__) == sorted(lora_ft.__all__)


def test_a_missing_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lora_ft' has no attribute 'trian'"):
        _ = lora_ft.trian  # type: ignore[attr-defined]


def test_type_checkers_see_the_names_that_are_exported() -> None:
    tree = ast.parse((ROOT / "lora_ft" / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imported = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported | {"__version__"} == set(lora_ft.__all__)


STEPS = (
    "import lora_ft.{name}",
    "from lora_ft.{name} import {name} as f; assert callable(f)",
    "from lora_ft import {name} as f; assert type(f).__name__ == 'function', f",
    "import importlib; m = importlib.import_module('lora_ft.{name}'); assert m.__name__ == 'lora_ft.{name}', m",
    "import lora_ft; assert type(lora_ft.{name}).__name__ == 'function'",
)


@pytest.mark.parametrize("name", ["compare", "generate"])
def test_a_verb_is_its_function_in_every_order_of_imports(name: str) -> None:
    """One interpreter tries all orders; it forgets the package between them."""
    orders = [[step.format(name=name) for step in order] for order in itertools.permutations(STEPS)]
    script = f"""
import sys
for order in {orders!r}:
    for module in [m for m in sys.modules if m in ("lora_ft", "lora_ft.{name}")]:
        del sys.modules[module]
    for step in order:
        exec(step, {{}})
        import lora_ft
        assert type(lora_ft.{name}).__name__ == "function", (order, step)
"""
    run_python(script)


def test_verbs_stay_functions_where_the_command_line_imports_them() -> None:
    names = [*VERBS, "train_many"]
    script = f"""
import lora_ft.cli.verbs, lora_ft.cli.train, lora_ft.cli.bundles, lora_ft.cli.adapters, lora_ft, importlib
for name in {names!r}:
    importlib.import_module("lora_ft." + name)
    assert type(getattr(lora_ft, name)).__name__ == "function", name
"""
    run_python(script)


def test_a_test_may_replace_a_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    before = lora_ft.compare
    monkeypatch.setattr(lora_ft, "compare", len)
    assert lora_ft.compare is len
    monkeypatch.undo()
    assert lora_ft.compare is before


def test_the_package_is_pickled_by_name() -> None:
    """The library `datasets` hashes functions with dill, which follows their modules."""
    assert pickle.loads(pickle.dumps(lora_ft)) is lora_ft


def test_every_kind_of_error_is_public_and_has_an_exit_code() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {name for name in kinds if not name.endswith("UsageError") or name == "UsageError"} <= set(lora_ft.__all__)
    for name in kinds:
        kind = getattr(errors, name)
        assert kind.exit_code == (2 if issubclass(kind, errors.UsageError) else 1)


@pytest.mark.parametrize("first", [errors.LoraFtError, errors.UsageError])
def test_an_error_of_a_kind_keeps_its_exit_code(first: type[errors.LoraFtError]) -> None:
    with pytest.raises(errors.DataError, match="rows are odd; mend them") as info, errors.raised_as(errors.DataError):
        raise first("rows are odd", "mend them")
    assert info.value.exit_code == first.exit_code
    assert isinstance(info.value, first)
    with pytest.raises(errors.BundleError), errors.raised_as(errors.DataError):
        raise errors.BundleError("another kind")


def rows_of(split: str, count: int) -> list[dict[str, Any]]:
    """Return rows with the default name of the target column."""
    return [{"text": row["text"], "target": row["answer"]} for row in (tiny_row(i, split) for i in range(count))]


def make_task(base: Path, **data: Any) -> lora_ft.Task:
    rows = {"train": rows_of("train", 24), "validation": rows_of("validation", 6)}
    return lora_ft.Task(
        name="demo",
        base=str(base),
        prompt="say: {text}",
        data=rows | data,
        lengths={"source": 48, "target": 24},
        lora={"preset": "tiny"},
        train={"max_steps": 3, "metric_for_best_model": "loss", "report_to": [], "compile": "off"},
    )


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> lora_ft.Run:
    return lora_ft.train(make_task(tiny_base), str(tmp_path_factory.mktemp("runs") / "demo"))


def test_rows_in_memory_are_trained_scored_exported_and_answered(run: lora_ft.Run, tmp_path: Path) -> None:
    evaluation = lora_ft.evaluate(run, baseline=True)
    assert 0 <= evaluation.scores["rouge1"].mean <= 100
    assert evaluation.split == "validation" and "6 validation rows of 'demo'" in str(evaluation)
    assert evaluation.as_dict()["scores"]["scores"]["rouge1"]["mean"] == evaluation.scores["rouge1"].mean
    exported = lora_ft.export_onnx(run, tmp_path / "bundle", precision="auto", max_drop=100)
    assert str(tmp_path / "bundle") in str(exported) and json.dumps(exported.as_dict())
    model = lora_ft.load(str(tmp_path / "bundle"))
    answers = model.generate([{"text": "abc"}])
    assert answers == model.generate("abc") == model.generate(["abc"]) == model.generate("say: abc", raw=True)
    assert len(answers) == 1 and "".join(model.stream("abc")) == answers[0] + "\n"
    assert model.adapters == [] and str(model) == f"bundle {tmp_path / 'bundle'}"


@pytest.mark.parametrize("kind", [str, Path, lora_ft.Run])
def test_a_run_is_named_by_itself_a_path_or_a_string(kind: Any, run: lora_ft.Run, tmp_path: Path) -> None:
    named = kind(run.folder)
    assert lora_ft.load(named).generate("abc") == lora_ft.generate(named, "abc")
    merged = lora_ft.merge(named, tmp_path / "checkpoint")
    assert str(tmp_path / "checkpoint") in str(merged) and merged.as_dict()["rows"] == merged.rows
    assert lora_ft.load(merged.out).generate("abc") == lora_ft.generate(run, "abc")


def test_a_run_keeps_the_rows_that_were_in_memory(run: lora_ft.Run) -> None:
    assert run.task.data.train == "data/train.jsonl" and run.task.data.root == run.folder
    assert "\n  root:" not in (run.folder / "task.yaml").read_text(encoding="utf-8")
    lines = (run.folder / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows_of("train", 24)


def test_a_run_of_rows_in_memory_is_trained_longer_and_replaced(tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    lora_ft.train(make_task(tiny_base), out)
    longer = make_task(tiny_base)
    longer.train.max_steps = 5
    assert lora_ft.train(longer, out, resume=True).metrics["steps"] == 5
    from_disk = lora_ft.load_task(out / "task.yaml")
    from_disk.train.max_steps = 7
    assert lora_ft.train(from_disk, out, resume=True).metrics["steps"] == 7
    assert len((out / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 24
    longer_task = make_task(tiny_base, train=rows_of("train", 20))
    longer_task.train.max_steps = 9
    with pytest.raises(lora_ft.UsageError, match="train: 20 rows, was 24"):
        lora_ft.train(longer_task, out, resume=True)
    with pytest.raises(lora_ft.OutputExistsError, match="already exists"):
        lora_ft.train(longer_task, out)
    assert lora_ft.train(longer_task, out, overwrite=True).metrics["rows"]["train"] == 20


def test_rows_may_be_a_data_set_or_a_frame(tiny_base: Path) -> None:
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    rows = rows_of("train", 4)
    for table in (datasets.Dataset.from_list(rows), pandas.DataFrame(rows), (row for row in rows)):
        assert make_task(tiny_base, train=table).data.in_memory["train"].rows == rows
    frame = pandas.DataFrame([{"text": "a", "n": 1}, {"text": None, "n": None}])
    assert make_task(tiny_base, train=frame).data.in_memory["train"].rows == [
        {"text": "a", "n": 1.0},
        {"text": None, "n": None},
    ]


def test_tables_give_short_floats_as_written_and_refuse_equal_columns(tiny_base: Path) -> None:
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b"], "answer": ["x", "y"], "score": [3.8, None]}).astype(
        {"score": "float32"}
    )
    listed = frame.astype(object).to_dict("records")
    for table in (frame, datasets.Dataset.from_pandas(frame), [{**listed[0], "score": frame["score"].to_numpy()[0]}]):
        assert make_task(tiny_base, train=table).data.in_memory["train"].rows[0]["score"] == 3.8
    short = frame["score"].to_numpy()[:1]
    lists = [{**listed[0], "score": score} for score in (short, list(short), {"each": short})]
    for table in (lists, pandas.DataFrame(lists)):
        rows = make_task(tiny_base, train=table).data.in_memory["train"].rows
        assert [row["score"] for row in rows] == [[3.8], [3.8], {"each": [3.8]}]
    twice = pandas.DataFrame([["a", "b"]], columns=["text", "text"])
    with pytest.raises(lora_ft.TaskError, match="two columns named 'text'"):
        make_task(tiny_base, train=twice)


def test_a_saved_task_reads_as_it_was_beside_files_too(tiny_base: Path, tmp_path: Path) -> None:
    save_task(as_task(make_task(tiny_base)), tmp_path / "rows.yaml")
    mixed = as_task(make_task(tiny_base, test="more/test.jsonl"))
    save_task(mixed, tmp_path / "task.yaml")
    assert lora_ft.load_task(tmp_path / "task.yaml") == saved_task(mixed, tmp_path)
    assert saved_task(mixed, tmp_path).data.test == [str(Path.cwd() / "more" / "test.jsonl")]


def test_an_invalid_task_lists_all_its_errors() -> None:
    message = r"the task: data = .*rows in memory exclude chat.*\(and 1 more\)"
    with pytest.raises(lora_ft.TaskError, match=message) as info:
        lora_ft.Task(name="x", data={"train": rows_of("train", 2), "chat": {}})  # type: ignore[call-arg]
    assert len(info.value.errors) == 2  # type: ignore[attr-defined]
    with pytest.raises(lora_ft.TaskError, match="overrides are for task files"):
        lora_ft.validate(lora_ft.Task(name="x", prompt="{text}", data={"train": "x.jsonl"}), ["name=y"])


def test_a_missing_file_of_a_task_in_python_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = lora_ft.Task(name="x", base="offline", prompt="{text}", data={"train": "rows.jsonl"})
    with pytest.raises(lora_ft.DataError, match="no file"):
        lora_ft.evaluate("offline", task=task, split="train")
