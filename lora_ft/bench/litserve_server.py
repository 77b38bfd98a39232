"""transformers behind LitServe, which batches whole requests: the usual server for such a model.

    python -P litserve_server.py CHECKPOINT PORT [--batch 8] [--wait 0.01] [--threads N]

It speaks POST /v1/completions without streams. This module imports only the packages of
`requirements/litserve.txt`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import litserve

SOURCE = 512  # maximum prompt length, in tokens, as in the task of the benchmark
NEW = 128  # default of max_tokens


class Completions(litserve.LitAPI):
    """A T5 checkpoint in float32.

    Args:
        checkpoint: Folder.
        threads: Threads of PyTorch.
        options: Options of LitAPI.
    """

    def __init__(self, checkpoint: str, threads: int, **options: Any) -> None:
        super().__init__(api_path="/v1/completions", **options)
        self._checkpoint, self._threads = checkpoint, threads

    def setup(self, device: str) -> None:
        """Load model and tokenizer."""
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        torch.set_num_threads(self._threads)
        self._model = AutoModelForSeq2SeqLM.from_pretrained(self._checkpoint, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self._checkpoint)

    def predict(self, inputs: Any, **_: Any) -> Any:
        """Answer requests together, or one request if batches have a single one."""
        import torch

        requests: Sequence[dict[str, Any]] = inputs if isinstance(inputs, list) else [inputs]
        prompts = [request["prompt"] for request in requests]
        encoded = self._tokenizer(prompts, return_tensors="pt", padding=True, truncation=True, max_length=SOURCE)
        new = max(int(request.get("max_tokens", NEW)) for request in requests)
        with torch.inference_mode():
            tokens = self._model.generate(**encoded, max_new_tokens=new, do_sample=False, num_beams=1)[:, 1:]
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        counts = (tokens != self._model.config.pad_token_id).sum(1).tolist()
        answers = list(zip(texts, counts, strict=True))
        return answers if isinstance(inputs, list) else answers[0]

    def encode_response(self, output: Any, **_: Any) -> dict[str, Any]:
        """Return an answer in OpenAI's form."""
        text, tokens = output
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return {"object": "text_completion", "choices": [choice], "usage": {"completion_tokens": tokens}}


def main() -> None:
    """Serve the checkpoint."""
    parser = argparse.ArgumentParser(description="Serve a checkpoint with LitServe.")
    parser.add_argument("checkpoint")
    parser.add_argument("port", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--wait", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    api = Completions(options.checkpoint, options.threads, max_batch_size=options.batch, batch_timeout=options.wait)
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
