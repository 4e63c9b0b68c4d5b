"""Files of labelling tools are read as those tools write them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from crackbatch.datasets.answer_files import read_answers
from crackbatch.errors import SourceError

CRACK, SOUND, NONE = 1, 0, None


def choice(*words: str, **more: object) -> dict[str, object]:
    result = [
        {"type": "choices", "from_name": "label", "to_name": "image", "value": {"choices": [word]}} for word in words
    ]
    return {"id": 1, "was_cancelled": False, "result": result, **more}


BOX = {"result": [{"type": "rectanglelabels", "value": {"x": 1, "y": 2, "rectanglelabels": ["crack"]}}]}
LABEL_STUDIO = [
    {"id": 1, "data": {"image": "/data/local-files/?d=site/a%20b.jpg"}, "annotations": [choice("crack")]},
    {"id": 2, "data": {"image": "/data/upload/3/0a1b2c3d-c.jpg"}, "annotations": [choice("no_crack")]},
    {"id": 3, "data": {"image": "x", "image_uri": "s3://b/d.jpg"}, "annotations": [BOX]},
    {"id": 4, "data": {"image": "e.jpg"}, "annotations": [choice("crack", was_cancelled=True)]},
    {"id": 5, "data": {"image": "f.jpg"}, "annotations": [choice("crack"), choice("no crack")]},
    {"id": 6, "data": {"image": "g.jpg"}, "annotations": []},
]
COCO = {
    "images": [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate("abc")],
    "annotations": [{"image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4]}, {"image_id": 2, "category_id": 9}],
    "categories": [{"id": 7, "name": "Crack"}, {"id": 9, "name": "spalling"}],
}
CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<image id="0" name="day 1/a.jpg" width="9" height="9"><tag label="crack" source="manual"/></image>
<image id="1" name="b.jpg" width="9" height="9"><tag label="no crack"/></image>
<image id="2" name="c.jpg" width="9" height="9"><polyline label="Crack" points="1,2;3,4"/></image>
<image id="3" name="d.jpg" width="9" height="9"></image></annotations>"""


@pytest.mark.parametrize(
    ("name", "text", "answers"),
    [
        ("own.csv",
         "image_uri,answer,label\n/a.jpg,crack,no_crack\n/b.jpg,no_crack,crack\n/c.jpg,,crack\n/d.jpg,unsure,x\n",
         [("/a.jpg", CRACK), ("/b.jpg", SOUND), ("/c.jpg", NONE), ("/d.jpg", NONE)]),
        ("excel.csv", "\ufefffilename;label\r\n'=1+1.jpg;1\r\nb.jpg;0\r\n", [("=1+1.jpg", CRACK), ("b.jpg", SOUND)]),
        ("studio.csv", 'image,id,choice\na.jpg,1,with crack\nb.jpg,2,"{""choices"": [""no_crack""]}"\n',
         [("a.jpg", CRACK), ("b.jpg", SOUND)]),
        ("studio.json", json.dumps(LABEL_STUDIO),
         [("/site/a b.jpg", CRACK), ("c.jpg", SOUND), ("s3://b/d.jpg", CRACK), ("e.jpg", NONE), ("f.jpg", NONE),
          ("g.jpg", NONE)]),
        ("min.json",
         '[{"id": 1, "file": "a.jpg", "choice": "crack"}, {"file": "b.jpg", "label": ["no crack"]}, {"file": "c.jpg"}]',
         [("a.jpg", CRACK), ("b.jpg", SOUND), ("c.jpg", NONE)]),
        ("coco.json", json.dumps(COCO), [("a.jpg", CRACK), ("b.jpg", SOUND), ("c.jpg", NONE)]),
        ("cvat.xml", CVAT, [("day 1/a.jpg", CRACK), ("b.jpg", SOUND), ("c.jpg", CRACK), ("d.jpg", NONE)]),
    ],
)  # fmt: skip
def test_answers_are_read_as_the_tool_wrote_them(
    name: str, text: str, answers: list[tuple[str, int | None]], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    words = Counter[str]()
    assert [(answer.name, answer.label) for answer in read_answers(str(tmp_path / name), words)] == answers
    assert set(words) <= {"x"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x", "is no file of answers; give .csv"),
        ("a.csv", "picture,label\na.jpg,crack\n", "has no column with the names of images"),
        ("a.csv", "image,remark\na.jpg,crack\n", "has no column with answers"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", '{"a": 1}', "neither an export of Label Studio"),
        ("a.xml", "<html/>", "is no export of CVAT"),
        ("a.xml", "<annotations", "cannot be read"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "defines entities"),
    ],
)
def test_a_file_that_is_no_list_of_answers_is_refused_in_one_line(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        list(read_answers(str(tmp_path / name), Counter()))


@pytest.mark.parametrize(
    "damaged",
    [
        '[{"image": null, "annotations": 5}]',
        '{"images": [{"id": 1}]}',
        '{"images": [5]}',
        '[{"data": {"image": "a"}, "annotations": [[1]]}]',
    ],
)
def test_a_damaged_export_is_no_traceback(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(damaged)
    with pytest.raises(SourceError):
        list(read_answers(str(tmp_path / "a.json"), Counter()))
