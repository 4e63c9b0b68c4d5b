"""A run that may read only below some prefixes asks for nothing else, whatever manifests, links and servers name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builders.archives import write_files, zip_with
from builders.plans import fetch_all, plan_of
from builders.servers import WholeFiles, serving
from crackbatch.errors import SourceError
from crackbatch.sources.prefixes import Prefixes
from crackbatch.storage import objects


@pytest.mark.parametrize(
    "location",
    [
        "https://host/ok/../secret.jpg", "https://host/ok/%2e%2e/secret.jpg", "https://host/ok/%252e%252e/secret.jpg",
        "https://host/ok\\..\\secret.jpg", "https://host/okay.jpg", "https://host@evil/ok/a.jpg", "http://host/ok/a.jpg",
        "https://host:8080/ok/a.jpg", "s3://ok/a.jpg", "/ok/a.jpg", "simplecache::https://host/ok/a.jpg",
    ],
)  # fmt: skip
def test_what_is_not_below_a_prefix_is_refused(location: str) -> None:
    assert Prefixes(["https://host/ok/"]).refusal(location) is not None
    assert Prefixes(["https://host/ok"]).refusal("https://host/ok/span/a.jpg") is None
    assert Prefixes().refusal(location) is None


def test_images_outside_are_rows_that_nobody_looked_up(tmp_path: Path, tiles: dict[str, bytes]) -> None:
    asked: list[str] = []

    class Handler(WholeFiles):
        def send_head(self) -> Any:
            asked.append(self.path)
            if self.path == "/ok/away.jpg":
                self.send_response(302)
                self.send_header("Location", "/secret.jpg")
                self.end_headers()
                return None
            return super().send_head()

    tile = tiles["tile-00.jpg"]
    www = write_files(tmp_path / "www", {"ok/a.jpg": tile, "secret.jpg": tile})
    inside = write_files(tmp_path / "in", {"a.jpg": tile, "b.zip": zip_with(0, {"m.jpg": tile})})
    outside = write_files(tmp_path / "out", {"c.jpg": tile, "d.zip": zip_with(0, {"m.jpg": tile}), "sub/e.jpg": tile})
    (inside / "link.jpg").symlink_to(outside / "c.jpg")
    (inside / "link").symlink_to(outside / "sub")
    (inside / "link.zip").symlink_to(outside / "d.zip")
    (inside / "good.jpg").symlink_to(inside / "a.jpg")
    with serving(www, Handler) as base:
        uris = [
            f"{base}/ok/a.jpg", f"{base}/ok/away.jpg", f"{base}/secret.jpg", f"{base}/ok/../secret.jpg", "a.jpg",
            "../out/c.jpg", "link.jpg", "/etc/passwd", f"zip://m.jpg::{outside}/d.zip", "zip://m.jpg::b.zip",
        ]  # fmt: skip
        (inside / "m.csv").write_text("image_uri\n" + "\n".join(uris))
        prefixes = Prefixes([str(inside), f"{base}/ok"])
        objects.follow_redirects(False)
        try:
            plan = plan_of(inside / "m.csv", inside, prefixes=prefixes)
            rows = {str(row["image_uri"]): row for row in fetch_all(plan)}
        finally:
            objects.follow_redirects(True)
        read = {name for name, row in rows.items() if row["bytes"] == tile}
        assert read == {
            f"{base}/ok/a.jpg", f"{inside}/a.jpg", f"{inside}/good.jpg", f"zip://m.jpg::{inside}/b.zip"
        }  # fmt: skip
        refused = [row for row in rows.values() if row["bytes"] is None]
        assert {row["status"] for row in refused} == {"unreadable"}
        assert len(refused) == len(uris) - 3
        assert plan.listing.passed_over["folders that are not below --only-below"] == 1
        assert set(asked) <= {"/ok/a.jpg", "/ok/away.jpg"}
        assert len(plan.listing.problems) == 1
        assert "link.zip: it is not below" in plan.listing.problems[0]
        with pytest.raises(SourceError, match=r"/out: it is not below .*/in or .*/ok \(--only-below\)"):
            plan_of(outside, prefixes=prefixes)
