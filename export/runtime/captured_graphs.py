"""Graphs that are called on fixed memory again and again, as CUDA graphs where ONNX Runtime can capture them.

Launching the kernels of a small graph takes longer than running them. A CUDA graph repeats all launches of a call for
the cost of one, with the same shapes and addresses. ONNX Runtime captures one for each value of a run option, in the
thread that makes the call, so all calls must come from one thread. To capture, it runs a graph several times
(microsoft/onnxruntime#32243). So a first call changes the outputs more than once; `call` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnxruntime as ort

from lora_ft.export.runtime.native_session import bind, keep_alive

# Before, a captured graph read memory of the host again that was free by then (microsoft/onnxruntime#32120, #32121),
# and the host waited for every repetition (#28686).
_NEEDS = (1, 31)

Call = Callable[[], None]


class CapturedGraphs:
    """Sessions of graphs, and their calls.

    Args:
        provider: "cpu" or "cuda". On processors nothing is captured.
        open_graph: Opens a graph by its name, to be captured or not.

    Attributes:
        trouble: Why nothing is captured, or "".
    """

    def __init__(self, provider: str, open_graph: Callable[[str, bool], ort.InferenceSession]) -> None:
        self._provider, self._open_graph = provider, open_graph
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._count = 0
        self.trouble = "" if provider == "cuda" else f"the provider {provider} has none"
        if not self.trouble and tuple(map(int, ort.__version__.split(".")[:2])) < _NEEDS:
            self.trouble = f"onnxruntime {ort.__version__} is older than {'.'.join(map(str, _NEEDS))}"

    def session(self, graph: str) -> ort.InferenceSession:
        """Return the session of a graph."""
        if graph not in self._sessions:
            self._sessions[graph] = self._open_graph(graph, not self.trouble)
        return self._sessions[graph]

    def call(
        self, graph: str, inputs: Mapping[str, ort.OrtValue], outputs: Mapping[str, ort.OrtValue]
    ) -> tuple[Call, Call]:
        """Return calls of a graph on these values, without and with waiting for the device, after a first call.

        If the graph cannot be captured, later calls are not captured either, and `trouble` names the reason.
        """
        try:
            return self._called(graph, inputs, outputs)
        except Exception as error:  # ONNX Runtime has no narrower one
            if self.trouble:
                raise
            self.trouble = next(iter(str(error).strip().splitlines()), type(error).__name__)
            self._sessions = {}
            return self._called(graph, inputs, outputs)

    def _called(
        self, graph: str, inputs: Mapping[str, ort.OrtValue], outputs: Mapping[str, ort.OrtValue]
    ) -> tuple[Call, Call]:
        session = self.session(graph)
        self._count += 1
        at_once, waiting = (bind(session, inputs, outputs, options=self._options(wait)).run for wait in (False, True))
        waiting()
        return at_once, waiting

    def _options(self, wait: bool) -> ort.RunOptions:
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "0" if wait else "1")
        if not self.trouble:
            options.add_run_config_entry("gpu_graph_id", str(self._count))
        return options

    def keep_alive(self) -> None:
        """Keep the sessions of a parent process alive in a forked child, see `Model.begin_again`."""
        for session in self._sessions.values():
            keep_alive(session)
