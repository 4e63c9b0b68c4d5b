"""The card of a model says what made it and what each of its operating points reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crackbatch.models.bundle import Bundle, read_bundle
from crackbatch.models.card import draw_card, write_card


def read_new(bundle: Path) -> Bundle:
    """The bundle with all that a training of today says of itself."""
    found = read_bundle(str(bundle))
    return replace(found, training={"split": "drawn with seed 0", **found.training})


def test_a_card_says_what_made_a_model_and_what_its_operating_points_reached(bundle: Path) -> None:
    found = read_new(bundle)
    lines = draw_card(found).splitlines()
    assert lines[0] == f"# {found.name}"
    assert f"| data | {', '.join(found.training['data'])} |" in lines
    assert f"| split digest | {found.training['split_digest']} |" in lines
    assert f"| started from | {found.training['recipe']['init']} |" in lines
    assert found.operating_points
    for name, point in found.operating_points.items():
        reached = f"{point.precision:.3f} | {point.recall:.3f} | {point.false_alarm_rate:.3f}"
        assert f"| `{name}` | {point.threshold:.4f} | {reached} |" in lines


def test_a_card_is_written_beside_the_other_files_of_its_model(bundle: Path) -> None:
    (bundle / "MODEL_CARD.md").unlink()
    before = {path.name for path in bundle.iterdir()}
    found = read_new(bundle)
    write_card(found)
    assert {path.name for path in bundle.iterdir()} - before == {"MODEL_CARD.md"}
    assert (bundle / "MODEL_CARD.md").read_text() == draw_card(found)
