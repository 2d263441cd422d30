"""A small web site on this machine: a search with an answer to find, and pages that misbehave."""

import html
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BRIDGES = {
    "severn-bridge": ("Severn Bridge", "Suspension bridge over the river Severn. Longest span: 988 metres."),
    "forth-bridge": ("Forth Bridge", "Cantilever railway bridge over the Firth of Forth. Longest span: 521 metres."),
    "clifton-bridge": ("Clifton Suspension Bridge", "Suspension bridge over the Avon Gorge. Longest span: 214 metres."),
}
"""What the site knows: address -> (title, what its page says)."""


@dataclass
class Site:
    """base: "http://127.0.0.1:PORT".   requests: (path with query, headers in lower case), in order."""

    base: str
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def host(self) -> str:
        """ "127.0.0.1:PORT", as --allow-hosts wants it."""
        return self.base.removeprefix("http://")

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


def _page(title: str, body: str) -> bytes:
    return f"<!doctype html><html><head><title>{title}</title></head><body>{body}</body></html>".encode()


def _home() -> bytes:
    form = '<form action="/search"><input type="search" name="q" aria-label="Search"><button>Search</button></form>'
    return _page("Bridges", f"<h1>Bridges</h1>{form}")


def _search(words: str) -> bytes:
    hits = [(name, *entry) for name, entry in BRIDGES.items() if words.lower() in " ".join(entry).lower()]
    items = "".join(f'<li><a href="/bridge/{name}">{title}</a></li>' for name, title, _ in hits)
    return _page(f"Results for {html.escape(words)}", f"<h1>{len(hits)} results</h1><ul>{items}</ul>")


_PAGES = {
    "/alerts": "<h1>Alerts</h1><button onclick=\"document.title = confirm('Sure?')\">Ask</button>",
    "/alert-loop": "<h1>Loop</h1><button onclick='while (true) alert(1)'>Ask</button>",
    "/hang": "<h1>Hang</h1><button onclick='while (true) {}'>Work</button>",
    "/popups": "<h1>Popups</h1><button onclick='for (let i = 0; i < 30; i++) window.open(\"/?\" + i)'>Open</button>",
    "/new-tab": '<h1>Tabs</h1><a href="/" target="_blank">Bridges in a new tab</a>',
    "/stay": "<h1>Stay</h1><input aria-label=Text><script>onbeforeunload = event => event.preventDefault()</script>",
    "/frame": "<h1>Outer</h1><iframe src='/bridge/forth-bridge'></iframe>",
    "/links": "<h1>Links</h1><a href='file:///etc/passwd'>file</a> <a href='/to/file'>redirect</a> "
    "<a href='/download'>download</a> <a href='/none'>nothing</a>",
    "/fields": "<h1>Fields</h1><label>Name <input></label><label>News <input type=checkbox></label>"
    "<label>Size <select><option>small<option>large</select></label><input type=file aria-label=Photo>"
    "<p id=said></p><script>addEventListener('keydown', e => said.textContent += e.key)</script>",
    "/odd": "<h1>Odd</h1><p>&#x1b;[31mred&#7; <span id=s></span></p><script>s.textContent = '\\ud800!'</script>",
    "/script": "<h1>Late</h1><button onclick='setTimeout(() => location = \"/slow?s=0.5\", 60)'>Go</button>",
    "/fetch": '<h1>Fetch</h1><button onclick=\'fetch("/slow?s=0.5").then(r => r.text()).then('
    't => document.title = t.length > 9 ? "Fetched" : "")\'>Go</button>',
    "/appears": "<h1>Soon</h1><p>Wait</p><script>setTimeout(() => "
    "document.querySelector('p').textContent = 'Arrived', 700)</script>",
    "/cookie": "<h1>Cookie</h1><p></p><script>document.querySelector('p').textContent = "
    "'had: ' + document.cookie + ' ' + localStorage.k; document.cookie = 'k=1'; localStorage.k = 'v'</script>",
    "/wants": "<h1>Wants</h1><p>nothing</p><script>navigator.serviceWorker?.register('/sw.js');"
    "Promise.all(['geolocation', 'notifications', 'camera', 'microphone'].map(name => navigator.permissions.query("
    "{name}))).then(all => document.querySelector('p').textContent = all.map(one => one.state).join(' '))</script>",
}


@contextmanager
def small_site() -> Iterator[Site]:
    """The site, on a free port of 127.0.0.1.

    `/` search form, `/search?q=`, `/bridge/NAME` the answers. Hostile: `/to/file`, `/to?url=` (redirects), `/download`,
    `/never` (a page without an end), `/silent` (no answer at all), `/big?mb=`, and those of `_PAGES`.
    """
    site = Site("")
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            site.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            try:
                self._answer(parts.path, query)
            except OSError:
                self.close_connection = True  # the browser went away

        def _answer(self, path: str, query: dict[str, str]) -> None:
            if path == "/":
                self._send(_home())
            elif path == "/search":
                self._send(_search(query.get("q", "")))
            elif path.startswith("/bridge/") and path.removeprefix("/bridge/") in BRIDGES:
                title, about = BRIDGES[path.removeprefix("/bridge/")]
                self._send(_page(title, f"<h1>{title}</h1><p>{about}</p><a href='/'>Back to the search</a>"))
            elif path in _PAGES:
                self._send(_page(path.strip("/"), _PAGES[path]))
            elif path == "/slow":
                stopping.wait(float(query.get("s", "1")))
                self._send(_page("Slow", "<h1>Slow but here</h1>"))
            elif path == "/to/file":
                self._send(b"", 302, location="file:///etc/passwd")
            elif path == "/to":
                self._send(b"", 302, location=query["url"])
            elif path == "/download":
                self._send(b"secret", content_type="application/octet-stream", content_disposition="attachment")
            elif path == "/none":
                self._send(b"", 204)
            elif path == "/silent":
                stopping.wait(60)
            elif path == "/never":
                self._stream(b"<title>Never</title><h1>The first part</h1>", b"<p>more</p>", 10**9, pause_s=0.05)
            elif path == "/big":
                row = b"<p>row of text <a href='/'>link</a></p>\n" * 1000
                self._stream(b"<title>Big</title>", row, int(float(query["mb"]) * 1e6 / len(row)), pause_s=0)
            else:
                self._send(_page("Not found", "<h1>Not found</h1>"), 404)

        def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"content_type": "text/html; charset=utf-8", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            if status != 204:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, first: bytes, part: bytes, count: int, pause_s: float) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(first)
            for _ in range(count):
                if stopping.is_set():
                    return
                self.wfile.write(part)
                if pause_s:
                    time.sleep(pause_s)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.base = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
