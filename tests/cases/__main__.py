"""Run every check on a folder of inputs: `python -m tests.cases FOLDER`."""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

from tests.cases import DEFAULT_FOLDER, all_cases


def main(arguments: list[str]) -> int:
    """Print one line a check and return the exit code: 0 if all hold, 1 if any fails, 2 if there are no inputs."""
    folder = Path(arguments[0]) if arguments else DEFAULT_FOLDER
    if not folder.is_dir():
        print(f"error: {folder} is not a folder; give the folder of the inputs", file=sys.stderr)
        return 2
    failed = 0
    for case in all_cases():
        with tempfile.TemporaryDirectory() as scratch:
            try:
                case.check(folder / case.folder, Path(scratch))
                print(f"ok      {case}")
            except Exception:
                failed += 1
                print(f"FAILED  {case}")
                traceback.print_exc()
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
