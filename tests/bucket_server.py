"""A bucket of Google Cloud Storage in this process: the part of its JSON API that checkpoints need, over HTTP."""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
import types
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class BucketServer(ThreadingHTTPServer):
    """Serves one bucket on a free port of this machine.

    Attributes:
      bucket: its name; any other one does not exist.
      objects: contents and generation by name.
      requests: method and path of each request so far.
      refusal: status and message that answer each request; status 0 closes the connection, as a network that is gone.
    """

    daemon_threads = True

    def __init__(self, bucket: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket, self.url = bucket, f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.requests: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.lock, self.generation, self.uploads = threading.RLock(), 0, dict[str, str]()

    def put(self, name: str, content: bytes) -> dict[str, Any]:
        with self.lock:
            self.generation += 1
            self.objects[name] = content, self.generation
            return self.metadata(name)

    def delete(self, name: str) -> None:
        with self.lock:
            del self.objects[name]

    def metadata(self, name: str) -> dict[str, Any]:
        import google_crc32c

        content, generation = self.objects[name]
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{name}/{generation}",
            "name": name,
            "bucket": self.bucket,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
        }


@contextlib.contextmanager
def serve_bucket(bucket: str) -> Iterator[BucketServer]:
    """Serves an empty bucket until the end of the block."""
    server = BucketServer(bucket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def bucket_of_tests(bucket: str) -> Iterator[BucketServer]:
    """Serves a bucket that the libraries of this process take for Google's, without credentials or retries."""
    import gcsfs
    from etils.epath.backend import fsspec_backend

    with serve_bucket(bucket) as server, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)  # of gcsfs
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")  # where libraries look for credentials
        sleepless = types.SimpleNamespace(sleep=_no_sleep, CancelledError=asyncio.CancelledError)
        monkeypatch.setattr("gcsfs.retry.asyncio", sleepless)
        fsspec_backend._get_filesystem.cache_clear()
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield server


async def _no_sleep(seconds: float) -> None:
    pass


class _Handler(BaseHTTPRequestHandler):
    server: BucketServer
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # an answer in one piece, at once

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        body, refusal = self._body(), self.server.refusal
        if refusal is None:
            status, content, headers = self._respond(self.command, self.path, body, self.headers)
        elif refusal[0]:
            status, content, headers = _error(*refusal)
        else:
            self.close_connection = True
            return
        self.server.requests.append(f"{self.command} {self.path} {status}")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever asked has left
            self.wfile.write(content)
            self.wfile.flush()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _respond(self, method: str, target: str, body: bytes, headers: Any) -> tuple[int, bytes, dict[str, str]]:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if url.path.startswith("/batch/"):
            return self._batch(body, headers)
        match = re.fullmatch(
            r"(?P<kind>/upload|/download)?/(?:resumable/)?(?:storage/v1/)?b/(?P<bucket>[^/]+)(?P<rest>/o(?:/(?P<name>.+))?|/storageLayout)?",
            url.path,
        )
        if match is None or match["bucket"] != self.server.bucket:
            return _error(404, f"The specified bucket does not exist: {target}")
        with self.server.lock:
            name = urllib.parse.unquote(match["name"] or "")
            if match["rest"] == "/storageLayout":
                return _json(
                    {
                        "kind": "storage#storageLayout",
                        "bucket": self.server.bucket,
                        "location": "US",
                        "locationType": "multi-region",
                        "hierarchicalNamespace": {"enabled": False},
                    }
                )
            if match["rest"] is None:
                return _json({"kind": "storage#bucket", "name": self.server.bucket, "id": self.server.bucket})
            if match["kind"] == "/upload":
                return self._upload(query, body, headers)
            if not name:
                return self._list(query)
            if "/rewriteTo/" in name:
                source, other = name.split("/rewriteTo/")
                other = other.split("/o/", 1)[1]
                if source not in self.server.objects:
                    return _error(404, f"No such object: {source}")
                resource = self.server.put(other, self.server.objects[source][0])
                return _json({"kind": "storage#rewriteResponse", "done": True, "resource": resource})
            return self._object(method, name, query, headers, match["kind"])

    def _object(self, method: str, name: str, query: dict[str, str], headers: Any, kind: str | None):
        if name not in self.server.objects:
            return _error(404, f"No such object: {name}")
        content, generation = self.server.objects[name]
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return _error(412, "conditionNotMet")
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        if method == "DELETE":
            del self.server.objects[name]
            return 204, b"", {}
        if query.get("alt") != "media" and kind != "/download":
            return _json(self.server.metadata(name))
        answer = {"Content-Type": "application/octet-stream", "x-goog-generation": str(generation)}
        if interval := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", "")):
            start = int(interval[1])
            stop = min(int(interval[2]) + 1, len(content)) if interval[2] else len(content)
            if start >= len(content):
                return _error(416, "Requested range not satisfiable")
            return 206, content[start:stop], {**answer, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        return 200, content, answer

    def _upload(self, query: dict[str, str], body: bytes, headers: Any):
        name, kind = query.get("name", ""), query.get("uploadType")
        if kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body)["name"]
            number = str(len(self.server.uploads))
            self.server.uploads[number] = name
            self.server.objects.setdefault(f"\0{number}", (b"", 0))
            return (
                200,
                b"{}",
                {
                    "Location": f"{self.server.url}/upload/storage/v1/b/{self.server.bucket}/o?uploadType=resumable&upload_id={number}"
                },
            )
        if "upload_id" in query:
            number = query["upload_id"]
            before = self.server.objects[f"\0{number}"][0] + body
            if headers["Content-Range"].endswith("/*"):
                self.server.objects[f"\0{number}"] = before, 0
                return 308, b"", {"Range": f"bytes=0-{len(before) - 1}"}
            del self.server.objects[f"\0{number}"]
            return _json(self.server.put(self.server.uploads[number], before))
        if kind == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", headers["Content-Type"])[1].encode()
            parts = body.split(b"--" + boundary)
            first, content = (re.split(b"\r?\n\r?\n", part.lstrip(b"\r\n"), maxsplit=1)[1] for part in parts[1:3])
            name = name or json.loads(first)["name"]
            body = content.removesuffix(b"\r\n") if content.endswith(b"\r\n") else content.removesuffix(b"\n")
        known = self.server.objects.get(name)
        if "ifGenerationMatch" in query and query["ifGenerationMatch"] != str(known[1] if known else 0):
            return _error(412, "conditionNotMet")
        return _json(self.server.put(name, body))

    def _list(self, query: dict[str, str]):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names = sorted(name for name in self.server.objects if name.startswith(prefix) and name[0] != "\0")
        names = [name for name in names if query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff")]
        folders: dict[str, None] = {}
        items = []
        for name in names:
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                folders[prefix + head + delimiter] = None
            else:
                items.append(self.server.metadata(name))
        return _json({"kind": "storage#objects", "items": items, "prefixes": list(folders)})

    def _batch(self, body: bytes, headers: Any):
        boundary = re.search(r"boundary=['\"]?([^'\";]+)", headers["Content-Type"])[1]
        answers = []
        for part in body.decode().split(f"--{boundary}")[1:-1]:
            line = next(line for line in part.splitlines() if re.match(r"(GET|DELETE|POST) ", line))
            method, target, *_ = line.split(" ")
            status, content, _ = self._respond(method, target, b"", {})
            identity = re.search(r"(?im)^content-id: *<?([^>\r\n]*)", part)
            answers.append(
                f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <response-{identity[1] if identity else ''}>\r\n\r\n"
                f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n\r\n{content.decode()}\r\n"
            )
        answers.append(f"--{boundary}--")
        return 200, "".join(answers).encode(), {"Content-Type": f"multipart/mixed; boundary={boundary}"}


def _json(value: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _error(code: int, message: str) -> tuple[int, bytes, dict[str, str]]:
    return (
        code,
        json.dumps({"error": {"code": code, "message": message}}).encode(),
        {"Content-Type": "application/json"},
    )
