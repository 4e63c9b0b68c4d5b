"""The house stands as it is built: imports point down, none runs in a circle, and the heavy ones have their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from builders.places import ROOT, TESTS

PACKAGE = ROOT / "crackbatch"
# From the ground up: a room imports those before it and itself. The others are files beside the rooms.
STOREYS = (
    "errors", "machine", "log", "progress", "storage", "cluster", "capacity", "images", "decoding", "archives",
    "sources", "models", "results", "datasets", "evaluation", "reports", "scoring", "augmentation", "training", "cli",
)  # fmt: skip
NEIGHBOURS = ("scoring", "training")  # which do not know each other
RAY = (
    "cluster",
    "capacity",
    "evaluation.inference",
    "scoring.meters",
    "scoring.pipeline",
    "training.workers",
    "training.compare",
)
TORCH = ("models", "augmentation", "training", "scoring.pipeline")
MOST_FILES = 10


class Arrow(NamedTuple):
    """One name of an import statement: the file that imports, what it imports, and when."""

    file: str  # below crackbatch, such as storage.buckets
    imported: str
    line: int
    is_at_start: bool  # as soon as the file is imported itself

    def __str__(self) -> str:
        return f"crackbatch.{self.file} → {self.imported} (line {self.line})"

    def target(self) -> str | None:
        """The file of the package that is imported, if it is one; it may be asked for by a name in it."""
        parts = self.imported.split(".")
        while parts[0] == "crackbatch" and len(parts) > 1:
            if (name := ".".join(parts[1:])) in FILES:
                return name
            parts.pop()
        return None


FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def imports(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement, wherever it stands, and whether it is done when the file is imported."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, True)]
    while waiting:
        node, is_at_start = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, is_at_start
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += [(child, False) for child in node.body] + [(child, is_at_start) for child in node.orelse]
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            is_at_start = False
        waiting += [(child, is_at_start) for child in ast.iter_child_nodes(node)]


def arrows() -> list[Arrow]:
    found = []
    for file, path in FILES.items():
        for node, is_at_start in imports(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"crackbatch.{file} imports relatively (line {node.lineno})"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                names = [alias.name for alias in node.names]
            found += [Arrow(file, name, node.lineno, is_at_start) for name in names]
    return found


ARROWS = arrows()
OWN = [arrow for arrow in ARROWS if arrow.imported.split(".")[0] == "crackbatch"]
PUBLIC = [arrow for arrow in OWN if arrow.target() is None and arrow.imported != "crackbatch.__version__"]


def room(file: str) -> str:
    return file.partition(".")[0]


def is_in(file: str, places: tuple[str, ...]) -> bool:
    return any(file == place or file.startswith(f"{place}.") for place in places)


def shown(wrong: list[Arrow]) -> str:
    return "\n" + "\n".join(map(str, wrong))


def test_every_file_is_in_a_room_that_has_its_storey() -> None:
    assert {room(file) for file in FILES} == set(STOREYS)
    folders = {path.parent.name for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert folders == {room(file) for file in FILES if "." in file}


def test_no_import_climbs() -> None:
    height = STOREYS.index
    wrong = [arrow for arrow in OWN if (to := arrow.target()) and height(room(to)) > height(room(arrow.file))]
    assert not wrong, shown(wrong)


def test_scoring_and_training_do_not_know_each_other() -> None:
    wrong = [arrow for arrow in OWN if (to := arrow.target()) and {room(to), room(arrow.file)} == set(NEIGHBOURS)]
    assert not wrong, shown(wrong)


def test_nothing_is_asked_of_the_package_itself_but_its_version() -> None:
    assert not PUBLIC, shown(PUBLIC)


def test_no_imports_run_in_a_circle() -> None:
    targets: dict[str, list[str]] = {file: [] for file in FILES}
    for arrow in OWN:
        if (to := arrow.target()) and to not in targets[arrow.file]:
            targets[arrow.file].append(to)
    done: set[str] = set()

    def follow(file: str, way: list[str]) -> None:
        if file in way:
            pytest.fail(" → ".join([*way[way.index(file) :], file]))
        if file not in done:
            for to in targets[file]:
                follow(to, [*way, file])
            done.add(file)

    for file in FILES:
        follow(file, [])


@pytest.mark.parametrize(
    ("packages", "places"), [(("ray",), RAY), (("torch", "torchvision", "safetensors"), TORCH)], ids=["ray", "torch"]
)
def test_heavy_packages_have_their_places(packages: tuple[str, ...], places: tuple[str, ...]) -> None:
    heavy = [arrow for arrow in ARROWS if room(arrow.imported) in packages]
    assert heavy
    wrong = [arrow for arrow in heavy if not is_in(arrow.file, places)]
    assert not wrong, shown(wrong)


def test_torch_is_not_imported_before_it_is_needed() -> None:
    heavy = [arrow for arrow in ARROWS if room(arrow.imported) in ("torch", "torchvision", "safetensors")]
    wrong = [arrow for arrow in heavy if arrow.is_at_start]
    assert not wrong, shown(wrong)


@pytest.mark.parametrize("code", ["import crackbatch", "from crackbatch.cli.commands import main; main()"])
def test_neither_the_package_nor_its_help_loads_torch_ray_or_fsspec(code: str) -> None:
    asked = (
        "import atexit, sys\n"
        "heavy = ('torch', 'torchvision', 'ray', 'fsspec')\n"
        "atexit.register(lambda: print('loaded', [name for name in heavy if name in sys.modules]))\n"
        "sys.argv[1:] = ['--help']\n"
    )
    done = subprocess.run([sys.executable, "-c", asked + code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []", done.stdout


def test_no_room_is_crowded() -> None:
    rooms: dict[str, list[str]] = {}
    for file in FILES:
        if "." in file and not file.endswith("__main__"):
            rooms.setdefault(room(file), []).append(file)
    crowded = {name: files for name, files in rooms.items() if len(files) > MOST_FILES}
    assert not crowded
    written = [path for path in PACKAGE.glob("*/__init__.py") if path.read_text()]
    assert not written, "a room's __init__.py is empty"


def test_every_test_file_mirrors_a_file_of_the_package() -> None:
    rooms = [TESTS, *(TESTS / name for name in STOREYS if (TESTS / name).is_dir())]
    files = [path.relative_to(TESTS) for folder in rooms for path in folder.glob("*.py") if path.name != "conftest.py"]
    mirrored = {file: file.with_name(file.name.removeprefix("test_")) for file in files}
    strangers = [
        f"tests/{file} → crackbatch/{there}"
        for file, there in mirrored.items()
        if not file.name.startswith("test_") or not (PACKAGE / there).is_file()
    ]
    assert not strangers
    others = {path.parent.name for path in TESTS.glob("*/*.py")} - {folder.name for folder in rooms}
    assert others == {"builders", "whole"}


def test_no_test_file_imports_from_another() -> None:
    wrong = []
    for path in [*TESTS.glob("*.py"), *TESTS.glob("*/*.py")]:
        for node, _ in imports(ast.parse(path.read_text())):
            names = [node.module or "."] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            wrong += [
                f"{path.relative_to(ROOT)} → {name} (line {node.lineno})"
                for name in names
                if any(part.startswith((".", "test_")) or part in ("conftest", "tests") for part in name.split("."))
            ]
    assert not wrong, "\n".join(wrong)
