"""A server that answers S3 clients with a listing of made-up scan files, and nothing else; used by store_opening.

    python -m tests.benchmarks.listing_server MANIFEST NAMES [--delay 0.1]

moto, which the tests use, sorts all its names again for every page: with a hundred thousand it would measure itself.
"""

import bisect
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import click

BUCKET = "targets"
FRAMES = 4541
"""Scans in a sequence, as in the first one of SemanticKITTI."""

PAGE = 1000
FILE = "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>0</Size></Contents>"
FOLDER = "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>"


def made_up_names(count: int) -> list[str]:
    """Names of so many scan files in sequences of `FRAMES`, sorted."""
    return [f"sequences/{row // FRAMES:04d}/{row % FRAMES:06d}.v0.zarr.zip" for row in range(count)]


class Lister(BaseHTTPRequestHandler):
    """Answers GET of the manifest and of listings."""

    protocol_version = "HTTP/1.1"
    manifest = b""
    names: list[str] = []
    delay = 0.0

    def do_GET(self) -> None:
        """One answer, after the delay of a listing."""
        parts = urlsplit(self.path)
        content = self.manifest
        if parts.query:
            time.sleep(self.delay)
            content = self.listing({name: values[0] for name, values in parse_qs(parts.query).items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        # Clients expect them of an object.
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(content)

    def listing(self, query: dict[str, str]) -> str:
        """A page of a listing as XML."""
        prefix = query.get("prefix", "")
        start, end = bisect.bisect_left(self.names, prefix), bisect.bisect_left(self.names, f"{prefix}\U0010ffff")
        if "delimiter" in query:
            found = sorted(
                {f"{prefix}{name.removeprefix(prefix).partition('/')[0]}/" for name in self.names[start:end]}
            )
            start, end, form = 0, len(found), FOLDER
        else:
            found, form = self.names, FILE
        start = int(query.get("continuation-token", start))
        stop = min(start + PAGE, end)
        further = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < end else ""
        entries = "".join(form.format(escape(name)) for name in found[start:stop])
        truncated = str(stop < end).lower()
        return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{further}{entries}</ListBucketResult>"

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("names", type=int)
@click.option("--delay", default=0.1, show_default=True, help="Seconds that every page of a listing takes.")
def main(manifest: Path, names: int, delay: float) -> None:
    """Serve until the process is ended; prints the port first."""
    Lister.manifest, Lister.names, Lister.delay = manifest.read_bytes(), made_up_names(names), delay
    server = ThreadingHTTPServer(("127.0.0.1", 0), Lister)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
