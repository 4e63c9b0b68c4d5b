"""Image formats: their file extensions, their first bytes, and which of them Pillow may decode."""

from __future__ import annotations

from functools import cache

import PIL.Image

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".webp", ".heic", ".heif", ".avif", ".gif"]
)

# Pillow's plug-ins that may read untrusted bytes. This leaves out plug-ins that start other programs (EPS) or follow
# paths written in the file.
_PILLOW_FORMATS = frozenset(
    "JPEG MPO PNG TIFF BMP DIB WEBP GIF HEIF AVIF JPEG2000 PPM ICO TGA PCX SGI".split()  # noqa: SIM905
)

_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (  # (bytes, offset, format)
    (b"\xff\xd8\xff", 0, "jpeg"),
    (b"\x89PNG\r\n\x1a\n", 0, "png"),
    (b"II*\x00", 0, "tiff"),
    (b"MM\x00*", 0, "tiff"),
    (b"II+\x00", 0, "tiff"),
    (b"BM", 0, "bmp"),
    (b"GIF87a", 0, "gif"),
    (b"GIF89a", 0, "gif"),
    (b"WEBP", 8, "webp"),
    (b"ftypavif", 4, "avif"),
    (b"ftypavis", 4, "avif"),
    (b"ftyphei", 4, "heif"),
    (b"ftyphev", 4, "heif"),
    (b"ftypmif1", 4, "heif"),
    (b"ftypmsf1", 4, "heif"),
    (b"\x00\x00\x00\x0cjP  ", 0, "jpeg2000"),
    (b"\xff\x4f\xff\x51", 0, "jpeg2000"),
)

_KNOWN_BUT_UNSUPPORTED: tuple[tuple[bytes, int, str], ...] = (
    (b"\xff\x0a", 0, "jpeg-xl"),
    (b"\x00\x00\x00\x0cJXL ", 0, "jpeg-xl"),
    (b"MM\x00+", 0, "big-endian bigtiff"),
    (b"8BPS", 0, "psd"),
    (b"\x76\x2f\x31\x01", 0, "openexr"),
    (b"II\xbc\x01", 0, "jpeg-xr"),
    (b"ftypcrx ", 4, "cr3"),
    (b"FUJIFILMCCD-RAW", 0, "raf"),
    (b"IIRO", 0, "orf"),
    (b"IIU\x00", 0, "rw2"),
)


def recognize(data: bytes) -> str | None:
    """Return the format that the first bytes belong to, None if it is not one of the supported formats."""
    return _match(data, _SIGNATURES)


def recognize_unsupported(data: bytes) -> str | None:
    """Return the known but unsupported image format that the first bytes belong to, else None."""
    return _match(data, _KNOWN_BUT_UNSUPPORTED)


def describe_start(data: bytes) -> str:
    """Return the error text for bytes that are not the start of any image format."""
    start = data[:16]
    text = start.decode("ascii", "replace") if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in start) else None
    shown = repr(text) if text else f"bytes {start[:8].hex(' ')}"
    return f"no image format starts with {shown}"


@cache
def pillow_formats() -> list[str]:
    """Return the permitted formats that the installed Pillow can read. Pillow loads most plug-ins only in `init`."""
    PIL.Image.init()
    return sorted(_PILLOW_FORMATS & PIL.Image.OPEN.keys())


def name_of(pillow_format: str | None) -> str:
    """Return the table's name for a Pillow format.

    An MPO file (drones, phones) is a JPEG followed by more views; its first view is the photo.
    """
    names = {"MPO": "jpeg", "DIB": "bmp"}
    return names.get(pillow_format or "", (pillow_format or "").lower())


def _match(data: bytes, signatures: tuple[tuple[bytes, int, str], ...]) -> str | None:
    return next((name for magic, offset, name in signatures if data.startswith(magic, offset)), None)
