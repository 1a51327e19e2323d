# SPDX-License-Identifier: Apache-2.0
"""A server on loopback that answers huggingface_hub as the Hugging Face hub does.

The routes are those that huggingface_hub 0.36 and 2.4 call to read a model repository and to commit
to one, with large-file storage, and those that datasets 5.2 calls to read a data set, whose
repository is named datasets/OWNER/NAME here; HF_ENDPOINT names the server.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.servers import serving

_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>.+?)"
    r"(?:/(?P<action>revision|tree|paths-info)/(?P<rest>.+))?"
)
LARGE = (".safetensors", ".bin", ".msgpack", ".model")  # kept in large-file storage


def commit_of(files: dict[str, bytes]) -> str:
    """A commit's name: 40 hex digits that follow from the files."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return digest.hexdigest()


@dataclass
class Repository:
    """Commits by name, and the commit of each branch or tag."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # lies about files
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        name = commit_of(files)
        self.commits[name] = dict(files)
        self.refs[ref] = name
        return name

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class FakeHub:
    """What the server holds, and what it was asked."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # "GET /path"
    tokens: set[str] = field(default_factory=set)
    may_write: str | None = None  # the token that may
    cut: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the next GET ends
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    corrupted: set[str] = field(default_factory=set)  # files that come with another byte
    is_down: bool = False

    def add(self, name: str, folder: Path | dict[str, bytes], ref: str = "main") -> str:
        """Commits a folder's files; returns the commit's name."""
        if isinstance(folder, Path):
            files = (path for path in folder.rglob("*") if path.is_file())
            folder = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        return self.repositories.setdefault(name, Repository()).commit(folder, ref)

    def asked(self, method: str, end: str = "") -> list[str]:
        return [r for r in self.requests if r.startswith(f"{method} ") and r.endswith(end)]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with serving(Handler) as hub.endpoint:
        yield hub


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._read(body=False)

    def do_GET(self) -> None:
        self._read(body=True)

    # ------------------------------------------------------------------------------------ reading

    def _read(self, *, body: bool) -> None:
        path = self._begin()
        if self.hub.is_down:
            self._refuse(500, None)
        elif asked := _API.fullmatch(path):
            self._asked(asked)
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._file(name, unquote(revision), unquote(file), body)
        else:
            self._refuse(404, "EntryNotFound")

    def _begin(self) -> str:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token.removeprefix("Bearer "))
        return path

    def _found(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            self._refuse(401, "RepoNotFound")
            return None
        commit = repository.find(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return repository, commit

    def _asked(self, asked: re.Match[str], paths: Sequence[str] | None = None) -> None:
        """Answer for a repository, or for the files in a folder of it, or those of some paths."""
        name = asked["name"] if asked["kind"] == "models" else f"datasets/{asked['name']}"
        revision, _, folder = (asked["rest"] or "main").partition("/")
        if asked["action"] in (None, "revision"):
            revision, folder = asked["rest"] or "main", ""
        found = self._found(name, unquote(revision))
        if found is None:
            return
        repository, commit = found
        files = repository.commits[commit]
        if asked["action"] in ("tree", "paths-info"):
            known = _entries(files)
            if paths is None:
                paths = [path for path in known if path.startswith(f"{folder}/" if folder else "")]
            self._json([known[path] for path in paths if path in known])
        else:
            siblings = [_sibling(file, files[file], repository.sizes) for file in sorted(files)]
            name = asked["name"]
            about = {"id": name, "modelId": name, "sha": commit, "private": repository.private}
            self._json(about | {"siblings": siblings})

    def _file(self, name: str, revision: str, file: str, body: bool) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        repository, commit = found
        if repository.gated:
            return self._refuse(403, "GatedRepo")
        if file not in repository.commits[commit]:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content = repository.commits[commit][file]
        etag = _sha256(content) if file.endswith(LARGE) else _git_sha1(content)
        if file in self.hub.corrupted:
            content = bytes([content[0] ^ 1]) + content[1:]
        start, total = 0, len(content)
        if given := self.headers.get("Range"):
            start = int(given.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if given else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        if given:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        if not body:
            return
        most = self.hub.cut.pop(file, None)
        self.wfile.write(content[start:][:most])
        if most is not None:
            self.close_connection = True

    # ------------------------------------------------------------------------------------ writing

    def do_POST(self) -> None:
        path = self._begin()
        content = self._content()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        asked = _API.fullmatch(path)
        if asked and asked["action"] == "paths-info":
            return self._asked(asked, parse_qs(content.decode()).get("paths", []))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.hub.may_write is None or token != self.hub.may_write:
            return self._refuse(401, None)
        if path == "/api/repos/create":
            self._create(json.loads(content))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(content))
        else:
            name, _, rest = path.removeprefix("/api/models/").rpartition("/")
            name, _, action = name.rpartition("/")
            self._change(self.hub.repositories[name], name, action, unquote(rest), content)

    def _content(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        path = self._begin()
        content = self._content()
        self.hub.stored[path.removeprefix("/lfs/")] = content
        self._json({})

    def _create(self, asked: dict[str, Any]) -> None:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if name in self.hub.repositories:
            return self._refuse(409, None, body={"url": f"{self.hub.endpoint}/{name}"})
        is_private = asked.get("private") or asked.get("visibility") == "private"  # 0.36, 2.4
        repository = Repository(private=bool(is_private))
        repository.commit({})
        self.hub.repositories[name] = repository
        self._json({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _change(
        self, repository: Repository, name: str, action: str, revision: str, content: bytes
    ) -> None:
        if action == "branch":
            repository.refs.setdefault(revision, repository.refs["main"])
            return self._json({})
        if action == "preupload":
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(content)["files"]
            ]
            return self._json({"files": files})
        assert action == "commit", action
        files = dict(repository.commits[repository.refs[revision]])
        for line in content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repository.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files, revision)
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    # ------------------------------------------------------------------------------------ answers

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(
        self,
        status: int,
        code: str | None,
        headers: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> None:
        said = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._json(body or {"error": code or "refused"}, status, {**said, **(headers or {})})


def _entries(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """What a listing says of each file and folder, by its path."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        for folder in reversed(PurePosixPath(path).parents[:-1]):
            oid = hashlib.sha1(str(folder).encode()).hexdigest()
            found[str(folder)] = {"type": "directory", "path": str(folder), "oid": oid, "size": 0}
        content = files[path]
        found[path] = {"type": "file", "path": path, "oid": _git_sha1(content)}
        found[path]["size"] = len(content)
    return found


def _sibling(name: str, content: bytes, lies: dict[str, int]) -> dict[str, Any]:
    size = lies.get(name, len(content))
    found: dict[str, Any] = {"rfilename": name, "size": size, "blobId": _git_sha1(content)}
    if name.endswith(LARGE):
        found["lfs"] = {"sha256": _sha256(content), "size": size, "pointerSize": 130}
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
