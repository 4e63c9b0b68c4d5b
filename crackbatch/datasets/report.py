"""Counts of what was found in labelled sources and of what was left out, and the lines that report them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from crackbatch.progress import counted

_MAX_EXAMPLES = 5
_MAX_WORD = 40
GUESS = "blocks of neighbouring names"  # how images are grouped if nothing names their photos


@dataclass
class Report:
    """Counts of what was found in the sources and of what was left out, with examples that a person should check.

    `not_understood` counts a manifest's labels that name neither class. `near_duplicates` counts sets of images that
    look the same, and `alike` counts the images in them. `grouped` counts labelled images by how they were grouped.
    `cut` lists the components (groups joined by near-duplicates) that are in more than one of train, validation and
    test; it is None if there is no split.
    """

    unlabelled: int = 0
    not_understood: Counter[str] = field(default_factory=Counter)
    listed_twice: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    contradictions: list[str] = field(default_factory=list)
    near_duplicates: int = 0
    alike: int = 0
    problems: list[str] = field(default_factory=list)
    grouped: Counter[str] = field(default_factory=Counter)
    cut: list[str] | None = None

    def groupings(self) -> list[str]:
        """Return a line for each way in which images are grouped; it says if the groups are only a guess."""
        doubt = {GUESS: ", because nothing names their photos: this is a guess (see --group-pattern)"}
        return [
            f"{_images(count, 'is', 'are')} grouped by {name}{doubt.get(name, '')}"
            for name, count in self.grouped.most_common()
        ]

    def unknown_words(self) -> str:
        """Return how many of a manifest's labels are not understood, and the most frequent one; empty if none."""
        if not self.not_understood:
            return ""
        example = self.not_understood.most_common(1)[0][0]
        num = self.not_understood.total()
        return f" ({num:,} of a manifest's labels are not understood, such as {example[:_MAX_WORD]!r})"

    def lines(self) -> list[str]:
        """Return the report as lines of text; none if there is nothing to report."""
        said = []
        if self.unlabelled:
            what = _images(self.unlabelled, "without a label was", "without a label were")
            said.append(f"{what} skipped{self.unknown_words()}")
        if self.listed_twice:
            what = _images(self.listed_twice, "is", "are")
            said.append(f"{what} listed twice in a manifest: only the first line of each was used")
        if self.unreadable:
            statuses = ", ".join(f"{name} {count:,}" for name, count in self.unreadable.most_common())
            what = _images(self.unreadable.total(), "that cannot be read was", "that cannot be read were")
            said.append(f"{what} skipped ({statuses})")
        if self.duplicates:
            said.append(f"{counted(self.duplicates, 'exact duplicate')} dropped")
        if self.contradictions:
            examples = "; ".join(self.contradictions[:_MAX_EXAMPLES])
            said.append(
                f"{_images(len(self.contradictions), 'has', 'have')} both labels and cannot be used: {examples}"
            )
        if self.near_duplicates:
            where = "are each kept together in the split" if self.cut == [] else "were found"
            said.append(f"{self.near_duplicates:,} sets of near-duplicates ({self.alike:,} images) {where}")
        if self.cut:
            said.append(
                f"warning: {len(self.cut):,} groups (made from {', '.join(self.grouped)}), such as {self.cut[0]}, have"
                " images or near-duplicates in more than one of train, validation and test, so results will look too"
                " good; leave out --split to draw a split that keeps them together"
            )
        return said + [f"problem: {problem}" for problem in self.problems]


def _images(num: int, one: str, several: str) -> str:
    return f"{counted(num, 'image')} {one if num == 1 else several}"
