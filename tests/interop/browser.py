"""Pages in a real Chromium: a small web server whose page posts where it is told to and says what it saw."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("page.html")
SEEN_S = 60.0
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--no-default-browser-check", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-proxy-server",
)  # fmt: skip

Step = Mapping[str, Any]


class Site:
    """An origin of its own, ``http://localhost:PORT``, whose page takes ``steps`` and reports to ``seen``."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://localhost:{port}"
        self.steps: Sequence[Step] = ()
        self.seen: queue.Queue[list[dict[str, Any]]] = queue.Queue()


@contextmanager
def site() -> Iterator[Site]:
    """A site, served while open."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = {"/": PAGE.read_bytes(), "/steps": json.dumps(served.steps).encode()}.get(self.path)
            self._answer(404 if content is None else 200, content or b"")

        def do_POST(self) -> None:
            served.seen.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(200, b"thanks")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name in the base class)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Site(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def visit(page: Site, steps: Sequence[Step], arrived: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
    """What the page saw of each step, in a Chromium that has never seen anything before.

    ``arrived`` returns when what the page cannot see has arrived: a beacon that is only queued when the page
    reports goes with the browser.
    """
    assert CHROMIUM
    page.steps = steps
    with tempfile.TemporaryDirectory(prefix="weir-chromium-", ignore_cleanup_errors=True) as profile:
        log = Path(profile) / "chromium.log"
        with log.open("wb") as out:
            chromium = subprocess.Popen(
                [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}/profile", f"{page.origin}/"],
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            seen = page.seen.get(timeout=SEEN_S)
        except queue.Empty:
            raise AssertionError(f"the page did not report\n{log.read_text('utf-8', 'replace')[-4000:]}") from None
        else:
            arrived()
            return seen
        finally:
            chromium.terminate()
            with suppress(subprocess.TimeoutExpired):
                chromium.wait(10)
            # Its children go on for a moment, and would write into the profile that is being removed.
            with suppress(ProcessLookupError):
                os.killpg(chromium.pid, signal.SIGKILL)
            chromium.wait(10)
