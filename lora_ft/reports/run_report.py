"""Write report.html into the folder of a run, and into the folder of several runs.

A report only shows files that are already on disk. A report that cannot be written is therefore a note, and never ends
a training or an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_ft.core.errors import LoraFtError, first_line
from lora_ft.core.files import write_text
from lora_ft.core.ownership import is_own_file
from lora_ft.core.progress import Progress
from lora_ft.reports import run_page, runs_page
from lora_ft.runs.run import REPORT, Run, is_run


def write_run_report(run: Run, progress: Progress) -> None:
    """Write the report of a run, and update the report of several runs in the parent folder if there is one.

    Args:
        run: Finished run.
        progress: Receives a note if a report could not be written.
    """
    _write(run.folder / REPORT, lambda: run_page.render(run), progress)
    parent = run.folder.resolve().parent
    if _is_runs_report(parent / REPORT):
        write_runs_report(parent, progress)


def write_runs_report(folder: Path, progress: Progress) -> None:
    """Write a report that compares all runs of a folder.

    Args:
        folder: Folder whose subfolders are runs.
        progress: Receives a note if the report could not be written.
    """
    _write(folder / REPORT, lambda: _compare_runs(folder), progress)


def _compare_runs(folder: Path) -> str:
    runs, unreadable = [], {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path)):
        if path.name.endswith(".unfinished"):
            continue
        try:
            run = Run(path)
            _ = run.scores
        except LoraFtError as error:
            unreadable[path.name] = error.message
        else:
            runs.append(run)
    return runs_page.render(runs, unreadable)


def _write(path: Path, render: Callable[[], str], progress: Progress) -> None:
    try:
        if path.exists() and not is_own_file(path):
            progress.note(f"{path} was not written by lora-ft and was kept; move it away to get a report")
            return
        write_text(path, render())
    except Exception as error:  # files of the run may be damaged or edited in any way
        progress.note(f"{path} could not be written ({type(error).__name__}: {first_line(error)})")


def _is_runs_report(path: Path) -> bool:
    """Return whether a file is a report of several runs, and not another page with the same name."""
    try:
        with open(path, encoding="utf-8") as file:
            return f"<title>{runs_page.TITLE}</title>" in file.read(4096)
    except (OSError, ValueError):
        return False
