"""The figures of a report show all images, each where it belongs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from crackbatch.reports.charts import histogram, map_positions


def test_every_probability_is_in_one_bar_also_zero_and_one() -> None:
    values = np.array([0.0, 0.049, 0.05, 0.5, 0.999, 1.0], np.float32)
    bars = histogram(values)
    assert sum(bar.num for bar in bars) == len(values)
    assert [bar.num for bar in bars if bar.num] == [2, 1, 1, 2]
    assert max(bar.height for bar in bars) == 1
    assert all(bar.height == 0 for bar in bars if not bar.num)
    assert sum(bar.num for bar in histogram(np.empty(0, np.float32))) == 0


def positions(*rows: tuple[float | None, float | None, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["latitude", "longitude", "label"])


def test_north_is_up_and_the_scale_bar_has_the_length_of_its_metres() -> None:
    found = map_positions(positions((47.0, 8.0, "crack"), (47.001, 8.0, "no_crack"), (47.0, 8.002, "no_crack")))
    assert found is not None
    (crack,) = (circle for circle in found.circles if circle.cracks)
    north = min(found.circles, key=lambda circle: circle.y)
    east = max(found.circles, key=lambda circle: circle.x)
    assert (north.x, east.y) == (pytest.approx(crack.x, abs=0.2), pytest.approx(crack.y, abs=0.2))
    metres = found.scale_m / found.scale * math.hypot(east.x - north.x, east.y - north.y)
    # 0.001 degrees of latitude are 111 m, 0.002 degrees of longitude at 47 degrees north 152 m.
    assert metres == pytest.approx(math.hypot(111.3, 151.8), rel=0.01)
    assert found.images == 3
    assert found.circles[-1] == crack, "a crack is drawn above what lies around it"


def test_a_thousand_images_of_one_place_are_one_circle_that_counts_them() -> None:
    rows = [(47.0, 8.0, "crack" if number < 10 else "no_crack") for number in range(1000)]
    found = map_positions(positions(*rows, (47.005, 8.0, "no_crack")))
    assert found is not None
    assert sorted((circle.images, circle.cracks) for circle in found.circles) == [(1, 0), (1000, 10)]


def test_positions_of_nowhere_do_not_shrink_the_map() -> None:
    site = [(47 + number / 1e5, 8 + number / 1e5, "no_crack") for number in range(200)]
    found = map_positions(positions(*site, (0.0, 0.0, "crack"), (None, 8.0, "crack"), (123.0, 8.0, "crack")))
    assert found is not None
    assert (found.images, found.num_outside) == (200, 1)
    assert found.scale_m < 1000
    assert map_positions(positions((None, None, "crack"))) is None


def test_a_site_on_both_sides_of_the_date_line_is_one_site() -> None:
    found = map_positions(positions((10.0, 179.9999, "crack"), (10.0, -179.9999, "crack")))
    assert found is not None
    assert found.scale_m < 100
