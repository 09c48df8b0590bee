"""ClickHouse reading our blocks, in a process of its own: chDB takes over signals and memory.

Run as a program it answers on its standard output, one frame per frame of its standard input: a
layout as JSON and a Native block come in, the block as ClickHouse writes it again goes out. A frame
is its length in eight bytes and its bytes. An error comes as a frame after one of length 2^63.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from chdb.state import sqlitelike

ERROR = 1 << 63


class ClickHouseRows:
    """A ClickHouse that takes blocks and gives them back. A context manager."""

    def __enter__(self) -> ClickHouseRows:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def stored(self, layout: Sequence[tuple[str, str]], block: bytes) -> bytes:
        """The rows of a block after an INSERT and a SELECT, as a Native stream. Fails with ClickHouse's own words."""
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in
        assert pipe_out
        write_frame(pipe_in, json.dumps(layout).encode())
        write_frame(pipe_in, block)
        answer = read_frame(pipe_out)
        assert answer is not None, "ClickHouse is gone"
        return answer


def write_frame(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(struct.pack("<Q", len(content)) + content)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """The next frame; None at the end. Raises ValueError for an error's."""
    header = pipe.read(8)
    if not header:
        return None
    (length,) = struct.unpack("<Q", header)
    if length == ERROR:
        raise ValueError((read_frame(pipe) or b"").decode())
    return pipe.read(length)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        connection = sqlitelike.connect(f"{directory}/data")
        block_file = Path(directory) / "block.native"
        while (layout := read_frame(sys.stdin.buffer)) is not None:
            block_file.write_bytes(read_frame(sys.stdin.buffer) or b"")
            columns = ", ".join(f"`{name}` {type_}" for name, type_ in json.loads(layout))
            try:
                connection.query("DROP TABLE IF EXISTS rows")
                connection.query(f"CREATE TABLE rows ({columns}) ENGINE = Memory")
                connection.query(f"INSERT INTO rows FROM INFILE '{block_file}' FORMAT Native")
                answer = bytes(connection.query("SELECT * FROM rows FORMAT Native").bytes())
            except RuntimeError as error:
                sys.stdout.buffer.write(struct.pack("<Q", ERROR))
                answer = str(error).encode()
            write_frame(sys.stdout.buffer, answer)
        connection.close()


if __name__ == "__main__":
    main()
