"""Encoded bytes to the network's input, in this process or in one of their own.

`Decoder` is how nearly all images are decoded. `IsolatedDecoder` does the same in a child process, for images that may
have killed a worker: what an image does to its decoder there costs that image alone.
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
_START_TIMEOUT_S = 60.0  # a machine under load takes its time to start a Python
# Pillow's pictures take 4 bytes a pixel, and decoding, turning and converting one holds a few of them at once.
_BYTES_PER_PIXEL = 32
_BASE_BYTES = 1 << 30


class Decoder:
    """Decodes images of at most `max_megapixels` and scales them to (size, size, 3) uint8."""

    def __init__(self, size: int, max_megapixels: float) -> None:
        self.size, self.max_megapixels = size, max_megapixels

    def __call__(self, data: bytes) -> Decoded:
        """The picture, without its pixels, and the network's input, None where there is none."""
        picture = read_image(data, self.max_megapixels)
        if picture.status != "ok":
            return picture, None
        pixels = to_input(picture, self.size)
        picture.pixels = None
        return picture, pixels


class IsolatedDecoder:
    """The same in a child process with bounded memory and time; a death of the child makes the image `crashed`."""

    def __init__(self, decoder: Decoder, timeout_s: float) -> None:
        self._decoder, self._timeout_s = decoder, timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, data: bytes) -> Decoded:
        """As `Decoder`, but whatever the image does to its decoder, a picture comes back."""
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
        return Picture("crashed", f"it kills its decoder ({_describe(code)})"), None

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
                raise RuntimeError(f"the decoder's process does not start ({_describe(child.wait())})")
        self._child = child
        return child

    def _end(self, died: bool = False) -> int:
        """Kill the child, if there is one and it lives, and return its exit code."""
        if (child := self._child) is None:
            return 0
        self._child = None
        with suppress(subprocess.TimeoutExpired):  # one that died closes its pipes a moment before
            child.wait(1 if died else 0)
        child.kill()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        return child.wait()


def too_slow(timeout_s: float) -> str:
    """The message of an image whose decoding was given up."""
    return f"decoding took longer than {timeout_s:g} s (--decode-timeout)"


@contextmanager
def _deadline(child: subprocess.Popen[bytes], seconds: float) -> Iterator[list[bool]]:
    """Kill the child when the time is over; the list says whether it was."""
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
    """The child: reads images from standard input, one after another, and writes back what became of each."""
    decoder = Decoder(int(sys.argv[1]), float(sys.argv[2]))
    most = _BASE_BYTES + int(decoder.max_megapixels * 1e6) * _BYTES_PER_PIXEL
    most = min(most, max(_BASE_BYTES, free_memory() // 2))  # the system must not come to end this process's parent
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for a decoder that prints
    answers.write(b"\n")
    answers.flush()
    with suppress(EOFError):
        while True:
            picture, pixels = decoder(_receive_bytes(sys.stdin.buffer))
            if picture.error == NO_MEMORY:
                picture.status, picture.error = "crashed", f"decoding it takes more than {most / 1e9:.1f} GB of memory"
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
