"""A server that imitates a bucket with more keys than a real test server could hold. It lists them, and knows itself.

    python benchmarks/bucket.py 1000000     prints its address, and serves until its standard input ends

Pages, prefixes, delimiters and continuation follow S3's documentation (API reference, ListObjectsV2).
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left, bisect_right
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_PAGE = 1000


def main() -> None:
    keys = [key(index) for index in range(int(sys.argv[1]))]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            body = list_page(keys, asked).encode()
            self.send_response_only(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response_only(200 if urlsplit(self.path).path.count("/") == 1 else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


def key(index: int) -> str:
    """The key at this place: the same names in the same order as in the zip of `benchmarks/plan.py`."""
    return f"bridge-{index // 10_000:03d}/span-{index // 100 % 100:02d}/IMG_{index:08d}.jpg"


def list_page(keys: list[str], asked: dict[str, str]) -> str:
    prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
    after = asked.get("continuation-token") or asked.get("start-after", "")
    at = max(bisect_left(keys, prefix), bisect_right(keys, after))
    found: list[str] = []
    last = after
    while len(found) < _PAGE and at < len(keys) and keys[at].startswith(prefix):
        cut = keys[at].find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            last = keys[at]
            found.append(
                f"<Contents><Key>{last}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"{at:032x}"</ETag><Size>14000</Size><StorageClass>STANDARD</StorageClass></Contents>'
            )
            at += 1
        else:
            folder = keys[at][: cut + 1]
            last = folder + "\U0010ffff"  # sorts after everything in the folder
            if folder > after:
                found.append(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>")
            at = bisect_right(keys, last)
    more = at < len(keys) and keys[at].startswith(prefix)
    token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
    return (
        "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
        f"<Name>archive</Name><Prefix>{prefix}</Prefix><KeyCount>{len(found)}</KeyCount><MaxKeys>{_PAGE}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(found)}</ListBucketResult>"
    )


if __name__ == "__main__":
    main()
