"""Decode images to the network's input, in this process or in a child process.

`Decoder` decodes nearly all images. `IsolatedDecoder` does the same in a child process, for images that may have
crashed a worker: an image that crashes its decoder there affects no other image.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from typing import IO

import numpy as np

from crackbatch.images.picture import NO_MEMORY, Picture, read_image, to_input
from crackbatch.machine import free_memory

Decoded = tuple[Picture, np.ndarray | None]

_LENGTH = struct.Struct("<Q")
_START_TIMEOUT_S = 60.0  # starting Python takes long on a busy machine
# A Pillow image takes 4 bytes per pixel. Decoding, turning and converting an image keeps a few copies at once.
_BYTES_PER_PIXEL = 32
_BASE_BYTES = 1 << 30


class Decoder:
    """Decodes images of at most `max_megapixels` and scales them to (size, size, 3) uint8."""

    def __init__(self, size: int, max_megapixels: float) -> None:
        self.size, self.max_megapixels = size, max_megapixels

    def __call__(self, data: bytes) -> Decoded:
        """Return the `Picture` without its pixels, and the network's input, None if the status is not `ok`."""
        picture = read_image(data, self.max_megapixels)
        if picture.status != "ok":
            return picture, None
        pixels = to_input(picture, self.size)
        picture.pixels = None
        return picture, pixels


class IsolatedDecoder:
    """Decodes in a child process with limited memory and time. If the child dies, the image's status is `crashed`."""

    def __init__(self, decoder: Decoder, timeout_s: float) -> None:
        self._decoder, self._timeout_s = decoder, timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, data: bytes) -> Decoded:
        """Do the same as `Decoder`, and return a `Picture` even if the decoder crashes or takes too long."""
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with _deadline(child, self._timeout_s) as expired:
                _send(child.stdin, data)
                return _receive(child.stdout, self._decoder.size)
        except (OSError, EOFError):
            code = self._end(died=True)
        if expired:
            return Picture("failed", too_slow(self._timeout_s)), None
        return Picture("crashed", f"decoding it crashed the decoder process ({_describe(code)})"), None

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = [str(self._decoder.size), str(self._decoder.max_megapixels)]
        child = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert child.stdout is not None
        with _deadline(child, _START_TIMEOUT_S):
            if child.stdout.read(1) != b"\n":
                raise RuntimeError(f"the decoder process did not start ({_describe(child.wait())})")
        self._child = child
        return child

    def _end(self, died: bool = False) -> int:
        """Kill the child if it still runs and return its exit code, 0 if there is no child."""
        if (child := self._child) is None:
            return 0
        self._child = None
        with suppress(subprocess.TimeoutExpired):  # a dying child closes its pipes a moment before it ends
            child.wait(1 if died else 0)
        child.kill()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        return child.wait()


def too_slow(timeout_s: float) -> str:
    """Return the error text of an image that took too long to decode."""
    return f"decoding took longer than {timeout_s:g} s (--decode-timeout)"


@contextmanager
def _deadline(child: subprocess.Popen[bytes], seconds: float) -> Iterator[list[bool]]:
    """Kill the child when the time is over. The list is then no longer empty."""
    expired: list[bool] = []

    def end() -> None:
        expired.append(True)
        child.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


def _describe(code: int) -> str:
    if code < 0:
        return f"signal {-code}, {signal.strsignal(-code)}"
    return f"exit code {code}"


def serve() -> None:
    """Run the child process: read images from standard input and write each result to standard output."""
    decoder = Decoder(int(sys.argv[1]), float(sys.argv[2]))
    most = _BASE_BYTES + int(decoder.max_megapixels * 1e6) * _BYTES_PER_PIXEL
    most = min(most, max(_BASE_BYTES, free_memory() // 2))  # or the system may kill the parent process
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # a decoder may print
    answers.write(b"\n")
    answers.flush()
    with suppress(EOFError):
        while True:
            picture, pixels = decoder(_receive_bytes(sys.stdin.buffer))
            if picture.error == NO_MEMORY:
                picture.status, picture.error = "crashed", f"decoding it needs more than {most / 1e9:.1f} GB of memory"
            fields = {**asdict(picture), "pixels": None}
            _send(answers, json.dumps(fields, default=datetime.isoformat).encode())
            _send(answers, b"" if pixels is None else pixels.tobytes())


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive_bytes(pipe: IO[bytes]) -> bytes:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _receive(pipe: IO[bytes], size: int) -> Decoded:
    fields = json.loads(_receive_bytes(pipe))
    pixels = _receive_bytes(pipe)
    if fields["captured_at"] is not None:
        fields["captured_at"] = datetime.fromisoformat(fields["captured_at"])
    return Picture(**fields), np.frombuffer(pixels, np.uint8).reshape(size, size, 3) if pixels else None
