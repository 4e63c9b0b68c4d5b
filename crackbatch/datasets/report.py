"""What was found in labelled sources and left out, and how a person reads it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_MAX_EXAMPLES = 5
_MAX_WORD = 40
GUESS = "blocks of neighbouring names"  # what tells groups where nothing names the photos


@dataclass
class Report:
    """What was found in the sources and left out: counts, and examples of what needs a person's look.

    `not_understood` counts a manifest's labels that are no words for either class; `near_duplicates` counts sets of
    images that look the same, `alike` the images in them; `grouped` counts labelled images by what told their groups;
    `cut` are components (groups, joined by near-duplicates) that stand on several sides of the split, None where there
    is no split.
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
        """What told the groups, and where they are no more than a guess."""
        doubt = {GUESS: ", for want of names that say which photos they are of: a guess (see --group-pattern)"}
        return [
            f"{count:,} images are grouped by {name}{doubt.get(name, '')}" for name, count in self.grouped.most_common()
        ]

    def unknown_words(self) -> str:
        """How many of a manifest's labels say nothing, and the most frequent of them; empty where there are none."""
        if not self.not_understood:
            return ""
        example = self.not_understood.most_common(1)[0][0]
        num = self.not_understood.total()
        return f" ({num:,} of a manifest's labels are not understood, such as {example[:_MAX_WORD]!r})"

    def lines(self) -> list[str]:
        """The report as a person reads it; nothing where nothing was left out."""
        said = []
        if self.unlabelled:
            said.append(f"{self.unlabelled:,} images without a label were passed over{self.unknown_words()}")
        if self.listed_twice:
            said.append(
                f"{self.listed_twice:,} images are listed twice in a manifest: the first line of each was taken"
            )
        if self.unreadable:
            statuses = ", ".join(f"{name} {count:,}" for name, count in self.unreadable.most_common())
            said.append(f"{self.unreadable.total():,} images cannot be read and were passed over ({statuses})")
        if self.duplicates:
            said.append(f"{self.duplicates:,} exact duplicates were dropped")
        if self.contradictions:
            examples = "; ".join(self.contradictions[:_MAX_EXAMPLES])
            said.append(f"{len(self.contradictions):,} images stand under both labels and were dropped: {examples}")
        if self.near_duplicates:
            where = "are kept on one side of the split" if self.cut == [] else "were found"
            said.append(f"{self.near_duplicates:,} sets of near-duplicates ({self.alike:,} images) {where}")
        if self.cut:
            said.append(
                f"warning: {len(self.cut):,} groups (told by {', '.join(self.grouped)}), such as {self.cut[0]}, have"
                " images or near-duplicates of them on several sides of the given split, so that measures look better"
                " than they are; without --split one is drawn that keeps them together"
            )
        return said + [f"damaged: {problem}" for problem in self.problems]
