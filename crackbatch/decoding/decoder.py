"""What a decoder process does: it turns encoded images into pixels until its parent process ends.

    python -c "from crackbatch.decoding.decoder import serve; serve()" {"socket": 5, …}

`decoding/decoders.py` starts these processes and explains why there are several. A request is a header, the length of
each image, and the images. The answer is JSON with one column for each name in `FACTS`. The pixels of the image at
place k of the request are written at place `first + k` of the shared memory.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import socket
import struct
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np

from crackbatch.images.picture import NO_MEMORY, Picture, picture_hash, read_image, to_input
from crackbatch.machine import free_memory, limit_memory, live_as_child, receive

# What is known about an image besides its pixels.
FACTS = (
    "status", "error", "format", "width", "height", "captured_at", "latitude", "longitude", "camera", "sha256", "looks"
)  # fmt: skip
# Number of images, place of the first one in the shared memory, and how many decoders may take memory beside this one.
HEADER = struct.Struct("<III")
LENGTH = struct.Struct("<Q")
READY = b"\n"

# A Pillow image takes 4 bytes per pixel. Decoding, turning and converting an image keeps a few copies at once.
_BYTES_PER_PIXEL = 32
_BASE_BYTES = 1 << 30
MAX_ERROR = 500  # characters


def serve() -> None:
    """Run the process. It is asked by socket, memory, size, places, max_megapixels and looks."""
    asked = live_as_child()
    decoder = _Decoder(asked["size"], asked["max_megapixels"], asked["looks"])
    size = decoder.size
    memory = mmap.mmap(asked["memory"], asked["places"] * size * size * 3)
    places = np.frombuffer(memory, np.uint8).reshape(-1, size, size, 3)
    with socket.socket(fileno=asked["socket"]) as parent, suppress(EOFError):
        parent.sendall(READY)
        while True:
            num, first, beside = HEADER.unpack(receive(parent, HEADER.size))
            lengths = np.frombuffer(receive(parent, num * LENGTH.size), np.uint64).tolist()
            most = _limit_memory(max(lengths), decoder.max_megapixels, beside)
            rows = []
            for place, length in enumerate(lengths, start=first):
                facts, pixels = decoder.decode(receive(parent, length), None if beside else most)
                if pixels is not None:
                    places[place] = pixels
                rows.append(facts)
            answer = json.dumps(list(zip(*rows, strict=True)), default=datetime.isoformat).encode()
            parent.sendall(LENGTH.pack(len(answer)) + answer)


class _Decoder:
    def __init__(self, size: int, max_megapixels: float, looks: bool) -> None:
        self.size, self.max_megapixels, self._looks = size, max_megapixels, looks

    def decode(self, data: bytearray, last_limit: int | None) -> tuple[list[Any], np.ndarray | None]:
        """Return the facts of an image, and its pixels (size, size, 3) uint8, None if the status is not `ok`.

        `last_limit` is in bytes, and given if the image is not tried again with more memory.
        """
        encoded = bytes(data)
        data.clear()  # an image may have a gigabyte
        pixels = looks = None
        try:
            picture = read_image(encoded, self.max_megapixels)
            if picture.status == "ok":
                pixels = to_input(picture, self.size)
                looks = picture_hash(picture) if self._looks else None
        except MemoryError:
            picture = Picture("failed", NO_MEMORY)
        if picture.error == NO_MEMORY and last_limit is not None:
            picture.status = "crashed"
            picture.error = f"decoding it needs more than {last_limit / 1e9:.1f} GB of memory"
        if picture.error is not None:
            picture.error = picture.error[:MAX_ERROR]  # a decoder may quote the image's own bytes
        known = {"sha256": hashlib.sha256(encoded).hexdigest(), "looks": looks.hex() if looks else None}
        return [known[name] if name in known else getattr(picture, name) for name in FACTS], pixels


def _limit_memory(length: int, max_megapixels: float, beside: int) -> int:
    """Limit this process to its share of half the free memory, and return the limit in bytes.

    Beyond it, an allocation fails here. Without it, the system might end the parent or another process. `length` is
    the encoded size of the largest image, of which the process holds a few copies for a moment.
    """
    pixels = int(max_megapixels * 1e6) * _BYTES_PER_PIXEL
    most = _BASE_BYTES + 3 * length + min(pixels, max(0, free_memory() // 2 // (beside + 1) - _BASE_BYTES))
    limit_memory(most)
    return most
