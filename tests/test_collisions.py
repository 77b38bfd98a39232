"""An installed lora-ft uses one name, `lora_ft`. Modules `export`, `benchmarks` and `tests` of a user keep working."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
TOP_FOLDERS = ("export", "benchmarks", "tests")  # of a checkout; none of them is installed under this name
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
USE = """
from lora_ft.export.runtime import Generator
assert Generator.__module__.startswith("lora_ft.export."), Generator.__module__
import {name}
assert {name}.OWNER == "the user", {name}
print("both work")
"""
USE_THE_OTHER_WAY_ROUND = "import {name}\n" + USE
NOTEBOOK = """
import sys
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="fresh", cwd=sys.argv[1])
try:
    reply = client.execute_interactive(sys.argv[2], timeout=120)
    assert reply["content"]["status"] == "ok", reply["content"]
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""


@dataclass(frozen=True)
class Project:
    """A project of a user.

    Attributes:
        folder: Working directory of every command.
        name: Dotted name of its module that shares a name with a top folder of this checkout.
    """

    folder: Path
    name: str


OWNER = 'OWNER = "the user"\n'
PROJECTS: dict[str, tuple[str, str]] = {
    "a module export": ("export", "export.py"),
    "a package export": ("export", "export/__init__.py"),
    "a folder export without __init__": ("export.mine", "export/mine.py"),
    "a package benchmarks": ("benchmarks", "benchmarks/__init__.py"),
    "a folder benchmarks without __init__": ("benchmarks.speed", "benchmarks/speed.py"),
    "a package tests": ("tests", "tests/__init__.py"),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel, built from a copy because a build leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("lora_ft", "export", "benchmarks"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    process = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a fresh environment that holds the wheel and borrows the packages of this one.

    A folder added by a `.pth` file has its own `.pth` files ignored, so an editable install of this checkout stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scheme = sysconfig.get_preferred_scheme("prefix")
    paths = sysconfig.get_paths(scheme, {"base": str(folder), "platbase": str(folder)})
    site, borrowed = Path(paths["purelib"]), sysconfig.get_paths()
    folders = dict.fromkeys([borrowed["purelib"], borrowed["platlib"]])
    (site / "others.pth").write_text("\n".join(folders), encoding="utf-8")
    with ZipFile(wheel) as archive:
        archive.extractall(site)  # an installer does the same with a pure wheel, and adds the scripts
    return Path(paths["scripts"]) / ("python.exe" if os.name == "nt" else "python")


@pytest.fixture(params=PROJECTS)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    name, file = PROJECTS[request.param]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(OWNER, encoding="utf-8")
    return Project(tmp_path, name)


def output(command: Sequence[object], folder: Path, **environment: str) -> str:
    """Run a command in a folder without this checkout on its path, and return its standard output."""
    inherited = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    process = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def imported(source: str) -> set[str]:
    """Return the first part of every absolute import of a module."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).split(".")[0])
    return names


def test_a_wheel_installs_one_name(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"lora_ft"}


def test_a_wheel_has_every_module(wheel: Path) -> None:
    """pyproject.toml lists the packages one by one, so a new package can be forgotten there."""
    with ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if name.endswith(".py")}
    link = ROOT / "lora_ft" / "export"
    expected = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "lora_ft").rglob("*.py") if link not in path.parents
    }
    expected |= {f"lora_ft/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "export").rglob("*.py")}
    assert {name for name in installed if name.startswith("lora_ft/")} == expected


def test_no_installed_module_imports_a_top_folder(wheel: Path) -> None:
    """An `import export` inside lora_ft would import the user's module."""
    with ZipFile(wheel) as archive:
        wrong = {
            name: names
            for name in archive.namelist()
            if name.startswith("lora_ft/") and name.endswith(".py")
            if (names := imported(archive.read(name).decode()) & set(TOP_FOLDERS))
        }
    assert wrong == {}


def test_export_has_no_second_name_in_a_checkout() -> None:
    command = [sys.executable, "-c", "import export"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("ImportError: this package must be imported as lora_ft.export")


@pytest.mark.parametrize("verb", ["", "bench"])
def test_the_command_line_starts(python: Path, project: Project, verb: str) -> None:
    assert "Usage:" in output([python, "-m", "lora_ft", *verb.split(), "--help"], project.folder)


@pytest.mark.parametrize("text", [USE, USE_THE_OTHER_WAY_ROUND])
def test_a_script_imports_both(python: Path, project: Project, text: str) -> None:
    script = project.folder / "main.py"
    script.write_text(text.format(name=project.name), encoding="utf-8")
    assert output([python, script.name], project.folder) == "both work\n"


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_a_test_imports_both(python: Path, project: Project, mode: str) -> None:
    lines = USE.format(name=project.name).strip().splitlines()
    body = "".join(f"    {line}\n" for line in lines)
    (project.folder / "test_mine.py").write_text(f"def test_both():\n{body}", encoding="utf-8")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}", "test_mine.py"]
    assert "1 passed" in output(command, project.folder)


@pytest.mark.skipif(not (find_spec("ipykernel") and find_spec("jupyter_client")), reason="Jupyter is not installed")
def test_a_notebook_imports_both(python: Path, project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    kernels = tmp_path_factory.mktemp("jupyter")
    spec: Mapping[str, object] = {
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "fresh",
        "language": "python",
    }
    (kernels / "kernels" / "fresh").mkdir(parents=True)
    (kernels / "kernels" / "fresh" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    driver = kernels / "driver.py"  # outside the project, where only the kernel starts
    driver.write_text(NOTEBOOK, encoding="utf-8")
    command = [sys.executable, driver, project.folder, USE.format(name=project.name)]
    assert "both work" in output(command, kernels, JUPYTER_PATH=str(kernels), IPYTHONDIR=str(kernels / "ipython"))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed")
def test_torchrun_imports_both(python: Path, project: Project) -> None:
    launch: Sequence[object] = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    script = project.folder / "main.py"
    script.write_text(USE.format(name=project.name), encoding="utf-8")
    assert "both work" in output([*launch, script.name], project.folder)
    assert "Usage:" in output([*launch, "-m", "lora_ft", "train", "--help"], project.folder)


USER = """
from pathlib import Path

import lora_ft

rows = [{"text": "some text", "target": "a title"}]
task = lora_ft.Task(name="demo", base="offline", prompt="Summarize: {text}", data={"train": rows, "validation": rows})
try:
    run = lora_ft.train(task, "runs/demo")
except lora_ft.OutputExistsError:
    run = lora_ft.train(task, Path("runs/demo"), resume=True)
score: float = lora_ft.evaluate(run, baseline=True).scores["rouge1"].mean
lora_ft.export_onnx(run, "bundles/demo", precision="auto")
model: lora_ft.Model = lora_ft.load("bundles/demo")
answers: list[str] = model.generate([{"text": "some text"}], num_beams=2)
merged = lora_ft.merge(run, "checkpoints/demo").as_dict()
reveal_type(lora_ft.load_task("qa"))
wrong: int = lora_ft.__version__
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("mypy"), reason="mypy is not installed")
def test_mypy_sees_the_types_of_the_wheel(python: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    command = [python, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "user.py"]
    process = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert [line.removeprefix("user.py:").lstrip("0123456789: ") for line in process.stdout.splitlines()] == [
        'note: Revealed type is "lora_ft.tasks.schema.Task"',
        'error: Incompatible types in assignment (expression has type "str", variable has type "int")  [assignment]',
        "Found 1 error in 1 file (checked 1 source file)",
    ]
