"""A model hub on 127.0.0.1 that stores uploaded files and serves them again.

It has the endpoints that huggingface_hub 2.4 uses: whoami, create, branch, validate-yaml, preupload, LFS batch and
upload, commit; revision, tree and resolve. Each can be made to fail.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".onnx", ".bin")


class FakeHub:
    """State of the hub, and failures to simulate.

    Attributes:
        token: Token that is accepted.
        private: Whether a repository is private, by repository.
        branches: Files by branch, by repository.
        commits: (repository, branch, summary, file names) of every commit.
        failures: Status and message of the response, by part of the path.
        passing: Failures of the first matching request only.
        stalled: Delay of every response, in seconds.
        requests: (method, path) of all requests, in order.
    """

    def __init__(self, token: str = "hf_secret") -> None:
        self.token = token
        self.private: dict[str, bool] = {}
        self.branches: dict[str, dict[str, dict[str, bytes]]] = {}
        self.commits: list[tuple[str, str, str, list[str]]] = []
        self.failures: dict[str, tuple[int, str]] = {}
        self.passing: dict[str, tuple[int, str]] = {}
        self.stalled = 0.0
        self.requests: list[tuple[str, str]] = []
        self.large: dict[str, bytes] = {}
        self.endpoint = ""

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a branch."""
        return self.branches[repo][branch]

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeHub]:
        """Serve on a port of 127.0.0.1."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def card_faults(card: str) -> list[str]:
    """Return errors in the metadata of a card, by the documented rules of the Hub's validator."""
    if not card.startswith("---\n"):
        return ["metadata is missing"]
    data = yaml.safe_load(card.split("---\n")[1])
    faults = [
        f'"{key}" must be a string'
        for key in ("license", "library_name", "pipeline_tag")
        if key in data and not isinstance(data[key], str)
    ]
    bases = data.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases:
        if base.count("/") > 1 or base.startswith((".", "/")):
            faults.append(f'"base_model" with value "{base}" is not valid')
    if data.get("base_model_relation", "adapter") not in ("adapter", "merge", "quantized", "finetune"):
        faults.append('"base_model_relation" must be one of adapter, merge, quantized, finetune')
    for model in data.get("model-index", []):
        for i, result in enumerate(model["results"]):
            for part, keys in (("task", ["type"]), ("dataset", ["type", "name"])):
                faults += [
                    f'"model-index[0].results[{i}].{part}.{key}" is required'
                    for key in keys
                    if not result.get(part, {}).get(key)
                ]
            faults += [
                f'"model-index[0].results[{i}].metrics" is required'
                for metric in result.get("metrics", [{}])
                if not metric.get("type") or "value" not in metric
            ]
    emissions = data.get("co2_eq_emissions", {"emissions": 0})
    if not isinstance(emissions.get("emissions"), (int, float)):
        faults.append('"co2_eq_emissions.emissions" must be a number')
    return faults


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._refused():
            self._post(urlsplit(self.path).path, body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._refused():
            oid = self.path.rsplit("/", 1)[1]
            self.hub.large[hashlib.sha256(body).hexdigest()] = body
            self._send({}, 200 if oid in self.hub.large else 400)

    def do_GET(self) -> None:
        if not self._refused():
            self._get(urlsplit(self.path).path)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _refused(self) -> bool:
        self.hub.requests.append((self.command, self.path))
        if self.hub.stalled:
            time.sleep(self.hub.stalled)
        for part, (status, message) in [*self.hub.failures.items(), *self.hub.passing.items()]:
            if part in self.path:
                self.hub.passing.pop(part, None)
                self._send({"error": message}, status)
                return True
        authorized = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if not authorized and not self.path.startswith("/upload/"):
            self._send({"error": "Invalid username or password."}, 401)
        return not authorized and not self.path.startswith("/upload/")

    def _post(self, path: str, body: bytes) -> None:
        hub = self.hub
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if path == "/api/repos/create":
            request = json.loads(body)
            repo = f"{request['organization'] or 'me'}/{request['name']}"
            if repo in hub.branches:
                return self._send(
                    {"error": "You already created this model repo", "url": f"{hub.endpoint}/{repo}"}, 409
                )
            hub.private[repo] = request.get("visibility") == "private" or bool(request.get("private"))
            hub.branches[repo] = {"main": {}}
            return self._send({"url": f"{hub.endpoint}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            faults = card_faults(json.loads(body)["content"])
            answer = {"errors": [{"message": fault} for fault in faults], "warnings": []}
            return self._send(answer, 400 if faults else 200)
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                entry
                if entry["oid"] in hub.large
                else {**entry, "actions": {"upload": {"href": f"{hub.endpoint}/upload/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self._send({"transfer": "basic", "objects": objects})
        repo, verb, branch = "/".join(parts[2:4]), parts[4], parts[5]
        if repo not in hub.branches:
            return self._send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if verb == "branch":
            if branch in hub.branches[repo]:
                return self._send({"error": "Reference already exists"}, 409)
            hub.branches[repo][branch] = dict(hub.branches[repo]["main"])
            return self._send({})
        if branch not in hub.branches[repo]:
            return self._send({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if verb == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send({"files": files})
        return self._commit(repo, branch, [json.loads(line) for line in body.splitlines()])

    def _commit(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> None:
        added: dict[str, bytes] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                added[value["path"]] = self.hub.large[value["oid"]]
            else:
                added[value["path"]] = base64.b64decode(value["content"])
        self.hub.branches[repo][branch] = {**self.hub.files(repo, branch), **added}
        self.hub.commits.append((repo, branch, lines[0]["value"]["summary"], sorted(added)))
        oid = self._revision(repo, branch)
        self._send({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}"})

    def _get(self, path: str) -> None:
        hub = self.hub
        if path == "/api/whoami-v2":
            return self._send({"name": "me", "type": "user", "auth": {}})
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "api":
            repo, verb, revision = "/".join(parts[2:4]), parts[4], parts[5]
            branch = self._branch(repo, revision)
            files = hub.files(repo, branch)
            if verb == "tree":
                return self._send(
                    [{"type": "file", "path": name, **self._entry(name, data)} for name, data in files.items()]
                )
            info = {"id": repo, "sha": self._revision(repo, branch), "siblings": [{"rfilename": n} for n in files]}
            return self._send({**info, "private": hub.private[repo], "tags": [], "downloads": 0, "likes": 0})
        repo, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        branch = self._branch(repo, revision)
        data = hub.files(repo, branch)[name]
        entry = self._entry(name, data)
        headers = {"X-Repo-Commit": self._revision(repo, branch), "ETag": f'"{entry["oid"]}"'}
        return self._send(data, 200, headers)

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        large = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
        return {"oid": git, "size": len(data), **(large if name.endswith(LARGE) else {})}

    def _revision(self, repo: str, branch: str) -> str:
        """Return the commit of a branch: a digest of its files."""
        files = self.hub.files(repo, branch)
        return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()

    def _branch(self, repo: str, revision: str) -> str:
        return next(name for name in self.hub.branches[repo] if revision in (name, self._revision(repo, name)))

    def _send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header(
                "Content-Type", "application/octet-stream" if isinstance(value, bytes) else "application/json"
            )
            self.send_header("Content-Length", str(len(data)))
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
