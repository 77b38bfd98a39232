"""`lora-ft bench serve` against real servers: figures, bad input, and signals."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lora_ft.bench.serve_report import ServeReport
from lora_ft.bench.server_process import family
from lora_ft.cli import run as lora_ft
from tests.lora_ft.bench.test_server_process import require_ended
from tests.lora_ft.serving.server_process import server_process

Capture = pytest.CaptureFixture[str]
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Rows, a load that every server holds, and the folder to write."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "word " * i + str(i)}) + "\n" for i in range(5)))
    load = ["--rows", "3", "--requests", "64", "--load", "50", "--slo", "1e6", "--max-tokens", "6", "--seconds", "1"]
    return ["--data", str(rows), "--prompt", "say: {text}", *load, "--out", str(tmp_path / "out"), "--quiet"]


@pytest.fixture
def broken() -> Iterator[str]:
    """The address of a server that answers everything with status 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(500)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"broken")

        do_POST = do_GET  # noqa: N815  (names of http.server)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_running_server_is_measured_at_its_address(
    published: Path, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    with server_process(str(published), "--threads", "1") as server:
        assert lora_ft(["bench", "serve", "--url", f"running={server.url}", *flags]) == 0
        assert server.process.poll() is None  # the benchmark did not start it, so it does not stop it
    printed = capsys.readouterr().out
    assert "running" in printed and "50.0" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith(("warning", "page")))
    (measured,) = ServeReport.read(tmp_path / "out" / "serve.json").servers
    assert (measured.kind, measured.models, measured.knee) == ("url", [published.name], 50.0)
    assert len(measured.answers) == 3 and measured.loads[0].same == 1.0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["serve.html", "serve.json", "serve.md"]


def test_a_command_is_started_and_ended(published: Path, flags: list[str], tmp_path: Path, capsys: Capture) -> None:
    command = f"{shlex.join([sys.executable, '-m', 'lora_ft', 'serve', str(published)])} --threads 1 --port {{port}}"
    assert lora_ft(["bench", "serve", "--start", f"ours={command}", "--common-slo", "--json", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    (measured,) = report["servers"]
    assert report["plan"]["common_slo"] and measured["limits_from"] == "ours"
    assert (measured["name"], measured["kind"], measured["error"]) == ("ours", "command", "")
    assert measured["loads"][0]["failed"] == {} and not measured["loads"][0]["stopped"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "there is no server to measure; pass --url, --start or --engine-only"),
        (["--url", "nonsense"], "'nonsense' is not an address; write http://HOST:PORT"),
        (["--url", "ours=ftp://host"], "'ftp://host' is not an address"),
        (["--start", "sleep 9"], "has no {port}"),
        (["--start", "/no/such/program {port}"], "/no/such/program cannot be started"),
        (["--url", "http://127.0.0.1:9", "--url", "http://127.0.0.1:9"], "two servers are named"),
        (["--url", "http://127.0.0.1:9", "--slo", "0.5"], "'--slo'"),
        (["--url", "http://127.0.0.1:9", "--slo", "-3"], "'--slo'"),
        (["--url", "http://127.0.0.1:9", "--slo", "nan"], "'--slo'"),
        (["--url", "http://127.0.0.1:9", "--slo", "inf"], "slo = inf"),
        (["--url", "http://127.0.0.1:9", "--slo", "three"], "'--slo'"),
        (["--url", "http://127.0.0.1:9", "--growth", "inf"], "growth = inf"),
        (["--url", "http://127.0.0.1:9", "--requests", "20"], "'--requests'"),
        (["--url", "http://127.0.0.1:9", "--prompt", "{nothing}"], "nothing"),
        (["--url", "http://127.0.0.1:9", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(
    arguments: list[str], why: str, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert lora_ft(["bench", "serve", *flags, *arguments]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert why in line
    assert not (tmp_path / "out").exists()


def failure(arguments: list[str], capsys: Capture) -> str:
    """Return the first warning of a benchmark whose only server failed. On a busy machine, more may follow."""
    assert lora_ft(["bench", "serve", *arguments]) == 1
    printed = capsys.readouterr().out
    assert "(failed)" in printed
    return next(line for line in printed.splitlines() if line.startswith("warning: "))


def test_an_address_that_nobody_answers_is_a_failure(flags: list[str], capsys: Capture) -> None:
    line = failure(["--url", "http://127.0.0.1:9", *flags], capsys)
    assert "the server cannot be reached" in line and line.endswith("check its address")


def test_a_server_that_lists_no_models_is_a_failure(broken: str, flags: list[str], capsys: Capture) -> None:
    assert "GET /v1/models does not list models (status 500)" in failure(["--url", broken, *flags], capsys)


def test_a_server_that_fails_every_request_is_a_failure(broken: str, flags: list[str], capsys: Capture) -> None:
    line = failure(["--url", broken, "--model", "some", *flags], capsys)
    assert "the server does not answer (status 500): broken" in line


def test_an_unknown_model_is_a_failure_with_the_server_s_message(
    published: Path, flags: list[str], capsys: Capture
) -> None:
    with server_process(str(published), "--threads", "1") as server:
        line = failure(["--url", server.url, "--model", "nobody", *flags], capsys)
    assert "the server refused a request (status 404)" in line and "nobody" in line


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until a condition holds while a process runs."""
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail("it never happened")


@needs_proc
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_server_and_keeps_its_figures(
    published: Path, flags: list[str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A script starts the server, so ending the script alone would not be enough."""
    pid, script = tmp_path / "pid", tmp_path / "serve.sh"
    serve = shlex.join([sys.executable, "-m", "lora_ft", "serve", str(published)])
    script.write_text(f"{serve} --threads 1 --port $1 & echo $! > {shlex.quote(str(pid))}; wait\n")
    done = shlex.join([sys.executable, "-m", "lora_ft", "serve", str(published)]) + " --threads 1 --port {port}"
    command = [sys.executable, "-m", "lora_ft", "bench", "serve", "--start", f"first={done}"]
    process = subprocess.Popen(
        [*command, "--start", f"second=sh {shlex.quote(str(script))} {{port}}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: pid.exists() and bool(pid.read_text()), process)
    server = int(pid.read_text())
    descendants = [member for member in family(process.pid) if member != process.pid]
    assert server in descendants
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors.decode()
    assert number == signal.SIGINT or errors.decode().splitlines()[-1] == f"stopped by {number.name}"
    require_ended(descendants)
    report = ServeReport.read(tmp_path / "out" / "serve.json")
    assert report.interrupted and report.servers[0].name == "first" and report.servers[0].knee == 50.0
    assert "interrupted" in (tmp_path / "out" / "serve.html").read_text()
