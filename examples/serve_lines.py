"""Serve a bundle in a loop: a JSON object of columns on each line of stdin, its answer on a line of stdout.

This needs only the base install: numpy, onnxruntime and tokenizers.

    python examples/serve_lines.py runs/examples/bundles/summaries < requests.jsonl
"""

from __future__ import annotations

import json
import sys

import lora_ft


def main(bundle: str) -> None:
    """Load a bundle once, then answer every line."""
    model = lora_ft.load(bundle)
    for line in sys.stdin.buffer:  # bytes, so that a line that is not UTF-8 does not end the loop
        try:
            answer = {"answer": model.generate([json.loads(line)])[0]}
        except (ValueError, lora_ft.LoraFtError) as error:  # one malformed request must not end the service
            answer = {"error": str(error)}
        print(json.dumps(answer, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python serve_lines.py BUNDLE < requests.jsonl")
    main(sys.argv[1])
