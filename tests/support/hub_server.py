"""The Hub, as far as reading a data set of Parquet shards needs it,
at an address of this machine.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pyarrow
from pyarrow import parquet

OLD, NEW = "a" * 40, "b" * 40  # revisions
CARD = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*}
  - {split: validation, path: en/validation-*}
- config_name: fr
  data_files:
  - {split: train_sft, path: fr/train-*}
---
# Two languages
"""


def write_set(folder: Path) -> None:
    """Two revisions of two configs of three shards;
    a column beside the text is of another type in each shard.
    """
    for revision in (OLD, NEW):
        root = folder / revision
        for config in ("en", "fr"):
            (root / config).mkdir(parents=True)
            for shard in range(3):
                other = [0, "a word", {"inner": 0}][shard]
                _write(
                    root / config / f"train-{shard:05}-of-00003.parquet",
                    f"{revision[0]} {config} {shard}",
                    200,
                    other,
                )
        _write(root / "en/validation-00000-of-00001.parquet", f"{revision[0]} val", 50, 0)
        (root / "README.md").write_text(CARD)


def _write(path: Path, what: str, number: int, other: Any) -> None:
    texts = [
        f"{what} row {row}: what the people of the town say to each other" for row in range(number)
    ]
    meta = [{"title": f"title {row}", "number": row} for row in range(number)]
    parquet.write_table(
        pyarrow.table({"text": texts, "meta": meta, "other": [other] * number}), path
    )


class Server(ThreadingHTTPServer):
    """Serves `owner/set` out of a folder of revisions; `head` is the newest one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.head = NEW

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers what the client libraries ask."""

    server: Server
    protocol_version = "HTTP/1.1"  # the connection stays

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlparse(self.path).path)
        for pattern, answer in ANSWERS.items():
            found = re.fullmatch(pattern, path)
            if found:
                root = self.server.folder / (
                    self.server.head if found[1] in (None, "main") else found[1]
                )
                return (
                    answer(self, root, found, body)
                    if root.is_dir()
                    else self.missing("RevisionNotFound")
                )
        return self.missing("RepoNotFound")

    do_HEAD = do_POST = do_GET

    def about(self, root: Path, found: re.Match[str], body: str) -> None:
        files = [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]
        self.send(
            {
                "id": "owner/set",
                "sha": root.name,
                "siblings": [{"rfilename": file} for file in files],
                "tags": [],
            }
        )

    def listed(self, root: Path, found: re.Match[str], body: str) -> None:
        folder = root / (found[2] or "")
        if not folder.is_dir():
            return self.missing("EntryNotFound")
        return self.send([self.entry(root, file) for file in sorted(folder.iterdir())])

    def entries(self, root: Path, found: re.Match[str], body: str) -> None:
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self.send([self.entry(root, root / path) for path in paths if (root / path).exists()])

    def file(self, root: Path, found: re.Match[str], body: str) -> None:
        if not (root / found[2]).is_file():
            return self.missing("EntryNotFound")
        data = (root / found[2]).read_bytes()
        start = 0
        stop = len(data)
        status = 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start = int(asked[1])
            stop = min(int(asked[2] or stop) + 1, stop)
            status = 206
        about = [("ETag", f'"{hashlib.sha1(data).hexdigest()}"'), ("X-Repo-Commit", root.name)]
        about += [("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")] if asked else []
        return self.send(data[start:stop], status, about)

    def entry(self, root: Path, file: Path) -> dict[str, Any]:
        kind, size = ("directory", 0) if file.is_dir() else ("file", file.stat().st_size)
        path = file.relative_to(root).as_posix()
        return {
            "type": kind,
            "path": path,
            "oid": hashlib.sha1(str(file).encode()).hexdigest(),
            "size": size,
        }

    def missing(self, code: str) -> None:
        self.send({"error": code}, 404, [("X-Error-Code", code)])

    def send(self, what: Any, status: int = 200, about: Iterable[tuple[str, str]] = ()) -> None:
        data = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), *about):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


ANSWERS: dict[str, Any] = {
    "/api/datasets/owner/set(?:/revision/([^/]+))?": Handler.about,
    "/api/datasets/owner/set/tree/([^/]+)(?:/(.*))?": Handler.listed,
    "/api/datasets/owner/set/paths-info/([^/]+)": Handler.entries,
    "/datasets/owner/set/resolve/([^/]+)/(.*)": Handler.file,
}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The server, which answers until the block ends."""
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
