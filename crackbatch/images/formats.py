"""Image formats: their file extensions, their first bytes, and which of them Pillow may decode."""

from __future__ import annotations

import math
import struct
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

_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (  # (bytes, offset, format)
    (b"\xff\xd8\xff", 0, "jpeg"),
    (_PNG, 0, "png"),
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


_NO_IMAGES = (  # in lower case
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a zip or an office document"),
    (b"\xd0\xcf\x11\xe0", "an old office document"),
    (b"rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"bzh", "a bzip2 file"),
    (b"\xfd7zxz", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file"),
    (b"par1", "a Parquet file"),
    (b"sqlite format 3", "a SQLite database"),
    (b"version https://git-lfs", "a pointer of Git LFS (run git lfs pull)"),
    (b"<!doctype html", "a web page, such as a server's question for a login"),
    (b"<html", "a web page, such as a server's question for a login"),
    (b"<?xml", "an XML text, such as a server's error message"),
    (b"<svg", "a drawing (SVG)"),
    (b"<error", "an XML text, such as a server's error message"),
    (b"\x7felf", "a program"),
    (b"mz", "a program"),
    (b"#!", "a script"),
    (b"id3", "a sound file"),
    (b"riff", "a video or a sound file"),
    (b"ogg", "a video or a sound file"),
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"\0\0\0\x18ftyp", "a video"),
    (b"\0\0\0\x1cftyp", "a video"),
    (b"\0\0\0 ftyp", "a video"),
    (b"\0\0\0\x14ftyp", "a video"),
)


class Refused(Exception):
    """The image is refused. The arguments are its status, its error text, and its format if that is known better."""


def size_in_ico(data: bytes) -> tuple[int, int] | None:
    """Return the largest width and height of the pictures in an ICO, None for another format.

    Pillow decodes an ICO when it opens it. The directory of the file gives sizes up to 256 only; a PNG inside has its
    own.
    """
    if data[:4] != b"\0\0\1\0":
        return None
    sizes = [(0, 0)]
    (num,) = struct.unpack_from("<H", data.ljust(6, b"\0"), 4)
    for entry in range(6, min(6 + 16 * num, len(data) - 15), 16):
        (start,) = struct.unpack_from("<I", data, entry + 12)
        head = data[start : start + 24].ljust(24, b"\0")
        if head.startswith(_PNG):
            sizes.append(struct.unpack_from(">II", head, 16))
        else:  # a BMP without its file header; its height counts the mask too
            width, height = struct.unpack_from("<ii", head, 4)
            sizes.append((abs(width), abs(height) // 2))
    return max(sizes, key=math.prod)


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
    """Return the error text for bytes that are not the start of any image format.

    It shows none of the bytes: whoever names a file in a manifest need not be allowed to read it.
    """
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    known = next((name for magic, name in _NO_IMAGES if start.lower().startswith(magic)), None)
    if known is None and start and all(32 <= byte < 127 or byte in b"\r\n\t\f" for byte in start):
        known = "a text"
    return f"it is {known}, not an image" if known else "its first bytes are those of no image format"


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
