"""Requests as bytes on a socket, and answers taken apart by hand: what a library would forgive is to be seen."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import zstandard
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from tests.support.gateway import Gateway

WAIT_S = 20.0
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}
PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    ".gz": ("gzip", gzip.decompress),
    ".zz": ("deflate", zlib.decompress),
    ".zst": ("zstd", lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body)),
}
"""Files whose content is compressed: how, and what it is without."""
UID = "01HZX"
"""The log.record.uid in all bodies that have one."""
CHUNK = 7

Names = Mapping[str, str]
"""What the words in braces stand for, in a request's head and body."""


class Reply:
    """An answer."""

    def __init__(self, raw: bytes) -> None:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode("ascii").split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.body = rest
        assert len(rest) == int(self.headers["content-length"])

    def content(self) -> Any:
        """The body, parsed by what it is labelled as; of protobuf a dictionary, empty for zero bytes."""
        if self.headers["content-type"] != "application/x-protobuf":
            return json.loads(self.body)
        message = Status() if self.status >= 400 else ExportLogsServiceResponse()
        message.ParseFromString(self.body)
        fields: dict[str, Any] = MessageToDict(message)
        assert bool(fields) == bool(self.body)
        return fields


def exchange(gateway: Gateway, head: str, body: bytes, names: Names) -> Reply:
    """One request on a connection of its own, and its reply."""
    return Reply(send(gateway, request_bytes(head, body, names)))


def request_bytes(head: str, body: bytes, names: Names) -> bytes:
    """A request as it goes over the wire."""
    for name, value in names.items():
        head = head.replace("{" + name + "}", value)
        body = body.replace(b"{%b}" % name.encode(), value.encode())
    lowered = head.lower()
    if "transfer-encoding: chunked" in lowered:
        pieces = [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))
    elif "content-length" not in lowered and not lowered.startswith("get "):
        head += f"Content-Length: {len(body)}\n"
    return (head + "Connection: close\n\n").replace("\n", "\r\n").encode("latin-1") + body


def send(gateway: Gateway, request: bytes, *, half_close: bool = False) -> bytes:
    """All of it is written before the answer is read; what comes until the gateway closes."""
    host, _, port = gateway.ingest[0].rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), WAIT_S) as connection, suppress(ConnectionError):
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def body_of(folder: Path, uid: str = UID) -> bytes:
    """The body of a case: what its file holds or describes. A ``uid`` of its own, as long, is put for ``UID``."""
    made = folder / "body.make.json"
    if not made.exists():
        files = list(folder.glob("body.*"))
        assert len(files) < 2
        return _with_uid(files[0], uid) if files else b""
    recipe = json.loads(made.read_text())
    unit = recipe["unit"].encode()
    body = (unit * (recipe["bytes"] // len(unit) + 1))[: recipe["bytes"]]
    return ENCODERS[recipe.get("encoding", "")](body)


def _with_uid(file: Path, uid: str) -> bytes:
    body, rows = file.read_bytes(), file.with_name("rows.json")
    if uid == UID or not rows.exists() or UID not in rows.read_text():
        return body
    how, unpack = PACKED.get(file.suffix, ("", bytes))
    return ENCODERS[how](unpack(body).replace(UID.encode(), uid.encode()))
