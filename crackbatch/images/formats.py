"""Image formats: their file extensions, their first bytes, and which of them Pillow may decode."""

from __future__ import annotations

from functools import cache

import PIL.Image

# The usual names of all formats that can be read.
_NAMES = """
    jpg jpeg jpe jfif jif jfi pjpeg pjp jps mpo png apng tif tiff btf tf8 bmp dib webp gif heic heif hif heics heifs
    avif avifs jp2 j2k j2c jpc jpf jpx ppm pgm pbm pnm ico tga pcx sgi rgb rgba bw
"""
# The usual names of camera raws, which cannot be read.
_RAW_NAMES = """
    3fr ari arw bay cap cr2 cr3 crw dcr dcs dng drf eip erf fff gpr iiq k25 kdc mdc mef mos mrw nef nrw orf ori pef ptx
    pxn r3d raf raw rw2 rwl rwz sr2 srf srw x3f
"""
EXTENSIONS = frozenset(f".{name}" for name in _NAMES.split())
RAW_EXTENSIONS = frozenset(f".{name}" for name in _RAW_NAMES.split())
_COMMON = ".jpg, .png, .tif, .webp, .heic"

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
    (b"IIRS", 0, "orf"),
    (b"MMOR", 0, "orf"),
    (b"IIU\x00", 0, "rw2"),
    (b"HEAPCCDR", 6, "crw"),
    (b"FOVb", 0, "x3f"),
    (b"\x00MRM", 0, "mrw"),
    (b"IIII", 0, "iiq"),
    (b"MMMM", 0, "iiq"),
)


class Refused(Exception):
    """The image is refused. The arguments are its status, its error text, and its format if that is known better."""


def unsupported(name: str) -> str:
    """Return the error text for an image of a known format that is not supported."""
    if f".{name}" in RAW_EXTENSIONS:
        return f"the camera raw format {name} is not supported: export JPEGs from it"
    return f"the format {name} is not supported"


def describe_extensions(extensions: frozenset[str]) -> str:
    """Return the file extensions for a message; of the many that are usual, only the commonest."""
    own = sorted(extensions - EXTENSIONS)
    usual = f"{_COMMON} and other usual names" if extensions >= EXTENSIONS else ", ".join(sorted(extensions - set(own)))
    return ", ".join(filter(None, [usual, *own]))


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
