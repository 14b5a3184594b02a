"""A small web server on this machine, for what fetches files."""

import re
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Files(BaseHTTPRequestHandler):
    """Serves ``files`` (path -> bytes), with Range unless told otherwise; it notes what it was asked for."""

    def __init__(self, *args, served, **options):
        self.served = served
        super().__init__(*args, **options)

    def do_GET(self):
        served, data = self.served, self.served.files.get(self.path)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and served.ranges else 0
        served.starts.append(start)
        if data is None:
            return self.send_error(404)
        if start >= len(data) > 0:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        for at in range(start, len(data) if served.drop_at is None else served.drop_at, 1 << 16):
            self.wfile.write(data[at : at + (1 << 16)])
            time.sleep(served.pause)

    def log_message(self, *_):
        pass


class Served:
    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.starts: list[int] = []  # first byte of each answer
        self.ranges = True
        self.drop_at: int | None = None  # the connection ends here
        self.pause = 0.0  # seconds after each 64 kB


@contextmanager
def serve():
    """``Served`` with ``url``, while the block runs."""
    served = Served()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, served=served))
    served.url = f"http://127.0.0.1:{server.server_port}/"
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
