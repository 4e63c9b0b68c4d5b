"""Images that do something to their decoder: it aborts, takes all memory, or never ends.

As `sitecustomize.py` on the path of a Python process, `POISON` makes Pillow's `open` do what an image's last bytes say.
"""

from __future__ import annotations

POISON = """
import os
import PIL.Image

_open = PIL.Image.open

def opened(file, *arguments, **options):
    data = file.getvalue() if hasattr(file, "getvalue") else b""
    if b"POISON: abort" in data:
        os.abort()
    if b"POISON: memory" in data:
        held = []
        while True:
            held.append(b"x" * (64 << 20))
    if b"POISON: sleep" in data:
        import time
        time.sleep(3600)
    return _open(file, *arguments, **options)

PIL.Image.open = opened
"""
