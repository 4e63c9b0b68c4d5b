"""What a decoder process does: it turns encoded images into pixels until its parent process ends.

    python -c "from crackbatch.decoding.decoder import serve; serve()" {"socket": 5, …}

`decoding/decoders.py` starts these processes and explains why there are several. A request is a header, the length of
each image, and the images. The answer is JSON with one column for each name in `FACTS`. The pixels of the image at
place k of the request are written at place `first + k` of the shared memory. If a file comes with the header, the
request is one photograph, and its pixels are written there at their own size.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
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
    "status", "error", "format", "width", "height", "captured_at", "latitude", "longitude", "camera",
    "gimbal_yaw", "gimbal_pitch", "gimbal_roll", "relative_altitude", "sha256", "looks",
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
    """Run the process. It is asked by socket, memory, size, places, max_megapixels, photo_side and looks."""
    asked = live_as_child()
    decoder = _Decoder(asked["size"], asked["max_megapixels"], asked["photo_side"], asked["looks"])
    size = decoder.size
    memory = mmap.mmap(asked["memory"], asked["places"] * size * size * 3)
    places = np.frombuffer(memory, np.uint8).reshape(-1, size, size, 3)
    with socket.socket(fileno=asked["socket"]) as parent, suppress(EOFError):
        parent.sendall(READY)
        while True:
            head, photos, _, _ = socket.recv_fds(parent, HEADER.size, 1)
            if not head:
                break
            num, first, beside = HEADER.unpack(head + receive(parent, HEADER.size - len(head)))
            lengths = np.frombuffer(receive(parent, num * LENGTH.size), np.uint64).tolist()
            most = _limit_memory(max(lengths), decoder.max_megapixels, beside)
            rows = []
            for place, length in enumerate(lengths, start=first):
                facts, pixels = decoder.decode(receive(parent, length), None if beside else most, bool(photos))
                if pixels is not None and photos:
                    _write(pixels, photos[0])
                elif pixels is not None:
                    places[place] = pixels
                rows.append(facts)
            for descriptor in photos:
                os.close(descriptor)
            answer = json.dumps(list(zip(*rows, strict=True)), default=datetime.isoformat).encode()
            parent.sendall(LENGTH.pack(len(answer)) + answer)


class _Decoder:
    def __init__(self, size: int, max_megapixels: float, photo_side: int | None, looks: bool) -> None:
        self.size, self.max_megapixels = size, max_megapixels
        self._photo_side, self._looks = photo_side, looks

    def decode(self, data: bytearray, last_limit: int | None, is_photo: bool) -> tuple[list[Any], np.ndarray | None]:
        """Return the facts of an image, and its pixels uint8, None if the status is not `ok`.

        The pixels are (height, width, 3) of a photograph, otherwise (size, size, 3). `last_limit` is in bytes, and
        given if the image is not tried again with more memory.
        """
        encoded = bytes(data)
        data.clear()  # an image may have a gigabyte
        pixels = looks = None
        try:
            picture = read_image(encoded, self.max_megapixels, None if is_photo else self._photo_side)
            if picture.status == "ok":
                pixels = np.asarray(picture.pixels) if is_photo else to_input(picture, self.size)
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


def _write(pixels: np.ndarray, descriptor: int) -> None:
    """Write the pixels of a photograph, unless there are more or fewer than its header said; the parent compares."""
    memory = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
    if memory.size == pixels.size:
        memory.reshape(pixels.shape)[:] = pixels


def _limit_memory(length: int, max_megapixels: float, beside: int) -> int:
    """Limit this process to its share of half the free memory, and return the limit in bytes.

    Beyond it, an allocation fails here. Without it, the system might end the parent or another process. `length` is
    the encoded size of the largest image, of which the process holds a few copies for a moment.
    """
    pixels = int(max_megapixels * 1e6) * _BYTES_PER_PIXEL
    most = _BASE_BYTES + 3 * length + min(pixels, max(0, free_memory() // 2 // (beside + 1) - _BASE_BYTES))
    limit_memory(most)
    return most
