"""The documentation builds without a warning, matches the code, and its commands and code run on a tiny model."""

from __future__ import annotations

import ast
import builtins
import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from benchmarks import readme
from docs.generators import messages
from docs.generators.__main__ import FILES
from lora_ft.cli import run
from lora_ft.cli.verbs import app
from lora_ft.export.runtime import manifest
from tests.conftest import write_task
from tests.pages import PAGES, ROOT, blocks, commands, smaller


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_generated_file_matches_the_code(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == FILES[name](), "run `python -m docs.generators`"


@pytest.mark.parametrize("page", readme.PAGES)
def test_tables_of_results_are_the_committed_measurements(page: str) -> None:
    assert readme.updated(page) == text_of(Path(page)), "run `python -m benchmarks.readme`"


def test_each_table_of_results_has_one_page() -> None:
    marks = [mark for page in PAGES for mark in re.findall(r"<!-- results: (\S+) \(python", text_of(page))]
    assert sorted(marks) == sorted(name for names in readme.PAGES.values() for name in names)
    assert set(marks) == {*readme.TABLES, "sizes"}


@pytest.mark.slow
def test_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        content = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|iframe)[^>]*src="(https?:)?//', content), f"{page} loads from the network"
        assert not re.search(r'<link[^>]*rel="(stylesheet|preconnect)"[^>]*href="(https?:)?//', content), page


def parameters(words: list[str]) -> tuple[Any, list[str]]:
    """Return the parser of a command, and the words that follow its name."""
    command: Any = typer.main.get_command(app)
    while inner := getattr(command, "commands", None):
        if words[0] not in inner:
            assert words[0] != "bench" and "run" in inner, words  # `bench MODEL` is `bench run MODEL`
            return inner["run"], words
        command, words = inner[words[0]], words[1:]
    return command, words


def names_of(command: Any) -> set[str]:
    """Return the names of a command's options."""
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_known(page: Path) -> None:
    for words in commands(text_of(page), "console", "sh"):
        command, remaining = parameters(words)
        options = {word.split("=")[0] for word in remaining if word.startswith("--")}
        assert options <= names_of(command), words


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_options_in_sentences_are_known(page: Path) -> None:
    known = {option for command in leaves(typer.main.get_command(app)) for option in names_of(command)}
    for code in re.findall(r"`((?:lora-ft |--)[^`\n]*)`", text_of(page)):
        if not code.startswith("--profile"):  # an option of docker compose
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)) <= known, code


def leaves(command: Any) -> list[Any]:
    """Return a command and all commands below it."""
    return [command, *(leaf for inner in getattr(command, "commands", {}).values() for leaf in leaves(inner))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_code_imports_what_it_uses(page: Path) -> None:
    for language in ("python", "py"):
        for block in blocks(text_of(page), language):
            assert undefined(block) == set(), block


def undefined(code: str) -> set[str]:
    """Return the names that code reads and that nothing in it defines."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    defined = {name.id for name in names if not isinstance(name.ctx, ast.Load)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
    return read - defined - set(dir(builtins))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_headings(page: Path) -> None:
    for name, anchor in re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", text_of(page)):
        target = (ROOT / page).parent / name if name else ROOT / page
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{name}#{anchor}"


def test_every_verb_is_shown() -> None:
    shown = {words[0] for page in PAGES for words in commands(text_of(page), "console", "sh")}
    mentioned = {name for page in PAGES for name in re.findall(r"`lora-ft (\w+)", text_of(page))}
    assert set(typer.main.get_command(app).commands) <= shown | mentioned | {"quickstart"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_task_files_are_valid(page: Path, tmp_path: Path) -> None:
    from lora_ft.tasks.files import load_search, load_tasks

    for number, block in enumerate(blocks(text_of(page), "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        content = yaml.safe_load(block)
        if "name" in content:
            assert load_search(path) if "search" in content else load_tasks(path, [])


def test_quoted_messages_are_in_the_source() -> None:
    quoted = re.findall(r'^### "(.+)"$', text_of(Path("docs/troubleshooting.md")), flags=re.MULTILINE)
    raised = [f"{message.text} {message.remedy}" for message in messages.collect()]
    assert quoted
    for text in quoted:
        assert any(text in message for message in raised), text


def test_specification_names_every_file_of_a_bundle() -> None:
    text = text_of(Path("docs/reference/bundle-format.md"))
    for name in (*manifest.FILES, *manifest.BANK_FILES, manifest.LABELS, manifest.SBOM, manifest.NAME):
        assert f"`{name}`" in text, name
    assert f"version {manifest.VERSION}" in text


def test_contributing_names_files_that_exist() -> None:
    text = text_of(Path("CONTRIBUTING.md"))
    for path in re.findall(r"`((?:lora_ft|export|benchmarks|tests|docs)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    answers = re.search(r"## Where do I change it\?\n(.*?)\n## ", text, flags=re.DOTALL)
    assert answers
    for row in answers.group(1).strip().splitlines()[2:]:
        assert 1 <= len(re.findall(r"`[\w/]+\.py`", row)) <= 3, row


@pytest.fixture(scope="session")
def workplace(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run and its bundle, by the names that the pages give them."""
    folder = tmp_path_factory.mktemp("pages")
    task = write_task(folder, tiny_base, name="demo", train={"metric_for_best_model": "loss"}, prompt="say: {dialogue}")
    for path in task.parent.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"text"', '"dialogue"'))
    with contextlib.chdir(folder):
        for command in (
            f"train {task} --out runs/demo",
            "evaluate runs/demo --limit 4",
            "export runs/demo --out runs/demo-onnx --verify-rows 2",
        ):
            assert run(command.split()) == 0
    return folder


MEASUREMENTS = Path("docs/scores.md")  # its commands train for hours
PAGES_TO_RUN = [
    page for page in PAGES if blocks(text_of(page), "console") and page.parts[0] == "docs" and page != MEASUREMENTS
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_TO_RUN, ids=str)
def test_commands_run_in_order(
    page: Path, workplace: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workplace, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    text = text_of(page)
    write_rows(text)
    for words in commands(text, "console"):
        if "--out" in words:
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        assert run(smaller(words, tiny_base)) == 0, words
    for block in blocks(text, "python"):
        exec(compile(block, str(page), "exec"), {})


def write_rows(text: str, copies: int = 16) -> None:
    """Write the CSV file of a page with every row in several copies, and the task file beside it."""
    for block, name in zip(blocks(text, "csv"), re.findall(r"`(\w+\.csv)`", text), strict=False):
        head, *rows = block.splitlines()
        Path(name).write_text("\n".join([head, *(f"{i} {row}" for i in range(copies) for row in rows)]) + "\n")
        Path(name).with_suffix(".yaml").write_text(blocks(text, "yaml")[0])
