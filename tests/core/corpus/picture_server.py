"""A server of pictures on this machine."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class PictureServer:
    """Serves `/N.png` as a picture of N, counts what is asked, and fails for the names in `away`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away: set[str] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                self.send_response(503 if self.path in server.away else 404 if "gone" in self.path else 200)
                self.end_headers()
                self.wfile.write(server.picture(self.path))

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"

    def picture(self, path: str) -> bytes:
        return f"pixels of {path}".encode()
