"""The real images: every member of the real archives is planned, and its bytes are its own."""

from __future__ import annotations

import random
import tarfile
import zipfile
from pathlib import Path

from crackbatch.images.formats import EXTENSIONS
from crackbatch.images.picture import read_image
from crackbatch.sources.fetch import fetch
from crackbatch.sources.plan import make_plan


def test_every_real_image_is_planned_once_and_read_as_itself(shared_data: Path) -> None:
    sources = [shared_data / "metu.zip", shared_data / "sdnet.tar", shared_data / "photos"]
    plan = make_plan([str(source) for source in sources], EXTENSIONS)
    with zipfile.ZipFile(sources[0]) as metu, tarfile.open(sources[1]) as sdnet:
        tiles = [name for name in metu.namelist() if name.endswith(".jpg")]
        members = [member.name for member in sdnet if member.isfile() and member.name.endswith(".jpg")]
        photos = list(sources[2].glob("*.jpg"))
        expected = {f"zip://{name}::{sources[0]}" for name in tiles} | {
            f"tar://{name}::{sources[1]}" for name in members
        }
        expected |= {str(photo) for photo in photos}
        uris = plan.table["image_uri"].to_pylist()
        assert len(uris) == len(expected) == len(tiles) + len(members) + len(photos)
        assert set(uris) == expected
        assert plan.listing.problems == []
        chosen = sorted(random.Random(0).sample(range(len(uris)), 200))
        rows = [row for block in fetch(plan.table.take(chosen)) for row in block.to_pylist()]
        assert [row["image_uri"] for row in rows] == [uris[index] for index in chosen]
        for row in rows:
            protocol, _, rest = row["image_uri"].partition("://")
            name = rest.partition("::")[0]
            if protocol == "zip":
                assert row["bytes"] == metu.read(name)
            elif protocol == "tar":
                member = sdnet.extractfile(name)
                assert member is not None
                assert row["bytes"] == member.read()
            else:
                assert row["bytes"] == Path(row["image_uri"]).read_bytes()
            assert read_image(row["bytes"]).status == "ok"
