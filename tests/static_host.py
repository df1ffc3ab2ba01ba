"""Serve a folder as static hosts do: compressed, below a path, with a page of its own for errors.

To look at the site so, for instance with Lighthouse: ``python tests/static_host.py``.
"""

import functools
import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
PREFIX = f"/{REPOSITORY.rpartition('/')[2]}/"
"""Where GitHub Pages serves a project."""
COMPRESSED = ("text/", "application/json", "application/javascript", "image/svg", "application/xml")


@functools.cache
def compressed(file: Path, changed: float) -> bytes:
    """Compress a file once for each time that it changed."""
    return gzip.compress(file.read_bytes(), compresslevel=6, mtime=0)


class StaticHost(http.server.SimpleHTTPRequestHandler):
    """Answers like GitHub Pages: gzip for what is text, ten minutes in a browser's cache."""

    protocol_version = "HTTP/1.1"
    # Without it an answer of more than one packet waits for the browser's word about the first.
    wbufsize = -1

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        root = Path(self.directory).resolve()
        file = (root / path.removeprefix(PREFIX)).resolve()
        if file.is_dir():
            file = file / "index.html"
        status = HTTPStatus.OK
        if not path.startswith(PREFIX) or root not in file.parents or not file.is_file():
            file, status = root / "404.html", HTTPStatus.NOT_FOUND
        kind = self.guess_type(file)
        packed = kind.startswith(COMPRESSED)
        body = compressed(file, file.stat().st_mtime) if packed else file.read_bytes()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if packed else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=600")
        if packed:
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Vary", "Accept-Encoding")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve a site and give the address of its root."""
    handler = functools.partial(StaticHost, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
        server.shutdown()


if __name__ == "__main__":
    with serve(ROOT / "_build" / "html", port=8000) as address:
        print(f"The site is at {address}; stop with Control-C.")
        threading.Event().wait()
