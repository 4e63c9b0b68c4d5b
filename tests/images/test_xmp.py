"""Drones say where their camera looked; senseless values cost nothing but themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders.pictures import encode, gradient
from builders.runs import rows, score
from crackbatch.images.picture import read_image
from crackbatch.images.xmp import Flight

ATTRIBUTES = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/"
 drone-dji:AbsoluteAltitude="+431.20" drone-dji:RelativeAltitude="+12.30" drone-dji:GimbalRollDegree="+0.00"
 drone-dji:GimbalYawDegree="-118.7" drone-dji:GimbalPitchDegree="-90.00"/></rdf:RDF></x:xmpmeta>"""
ELEMENTS = b"""<x:xmpmeta><drone-dji:GimbalPitchDegree>-15</drone-dji:GimbalPitchDegree></x:xmpmeta>"""


@pytest.mark.parametrize(
    ("xmp", "expected"),
    [
        (ATTRIBUTES, Flight(-118.7, -90.0, 0.0, 12.3)),
        (ELEMENTS, Flight(gimbal_pitch=-15.0)),
        (b'<x drone-dji:GimbalYawDegree="north" drone-dji:RelativeAltitude="1e999"/>', Flight()),
        (b"\xff\x00 no XML at all", Flight()),
        (b"<x>" + b" " * 65_000 + b"</x>", Flight()),
    ],
)
def test_what_a_drone_wrote_is_read(xmp: bytes, expected: Flight) -> None:
    picture = read_image(encode(gradient(), "JPEG", xmp=xmp))
    assert picture.status == "ok"
    assert Flight(*(getattr(picture, name) for name in Flight._fields)) == expected


def test_the_table_has_it_if_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "drone.jpg").write_bytes(encode(gradient(), "JPEG", xmp=ATTRIBUTES))
    (tmp_path / "in" / "phone.jpg").write_bytes(encode(gradient(), "JPEG"))
    (tmp_path / "in" / "bad.jpg").write_bytes(b"")
    score(tmp_path / "in", tmp_path / "full", exif="full", engine="local")
    table = rows(tmp_path / "full").set_index("image_uri")[list(Flight._fields)]
    assert table.loc[f"{tmp_path}/in/drone.jpg"].tolist() == [-118.7, -90.0, 0.0, 12.3]
    assert np.isnan(table.drop(f"{tmp_path}/in/drone.jpg")).all(axis=None)
    score(tmp_path / "in", tmp_path / "basic", engine="local")
    assert not set(Flight._fields) & set(rows(tmp_path / "basic"))
