"""The pages lead nowhere dead, and every command on them exists with its options."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from builders.places import ROOT
from crackbatch.cli.commands import app

PAGES = sorted({
    *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md"), *ROOT.glob("notebooks/*.ipynb"),
    *ROOT.glob("crackbatch/models/*/MODEL_CARD.md"),
})  # fmt: skip
WITH_COMMANDS = [*PAGES, *sorted(ROOT.glob("jobs/*.py")), *sorted(ROOT.glob("benchmarks/*.py")), ROOT / "Makefile",
                 *sorted(ROOT.glob("cluster/**/*.yaml")), *sorted(ROOT.glob("crackbatch/**/*.html"))]  # fmt: skip
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def text_of(page: Path) -> str:
    """The text of a page; of a notebook, that of its cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) + "\n" for cell in json.loads(text)["cells"])


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.+)$", text_of(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path) -> None:
    text = re.sub(r"(?s)```.*?```", "", text_of(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert ROOT in found.parents, f"{page.name} links out of the project: {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}; {found.name} has no such heading"


def commands_of(text: str) -> Iterator[list[str]]:
    """Each `crackbatch …` of a text, as words."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        for found in re.finditer(
            r"(?:^|[`$!(\"'/ ])crackbatch((?: +--config \S+)?) +([a-z][\w-]*)((?: [^`|]*)?)", line
        ):
            if found[2] in COMMANDS:
                rest = re.split(r"`|  #| \| | && ", found[3])[0]
                try:
                    words = shlex.split(rest, comments=True)
                except ValueError:  # the end of a sentence, with an apostrophe
                    words = rest.split()
                yield [found[2], *words]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_of_a_command_exists(page: Path) -> None:
    for command, *words in commands_of(text_of(page)):
        known = {option for parameter in COMMANDS[command].params for option in parameter.opts} | {"--help", "-h"}
        options = {re.match(r"-{1,2}[a-z][\w-]*|-\w", word)[0] for word in words if re.match(r"--?[a-z]", word)}  # type: ignore[index]
        assert options <= known, f"{page.name}: crackbatch {command} has no {options - known}"


def test_the_pages_name_every_command() -> None:
    said = {command for page in PAGES for command, *_ in commands_of(text_of(page))}
    named = set(re.findall(r"`([a-z-]+)`", text_of(ROOT / "README.md")))
    assert set(COMMANDS) - named == set(), "README's table of commands lacks these"
    assert len(said) > 10
