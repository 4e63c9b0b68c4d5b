"""Lists sources (folders, globs, files, URLs, manifests): finds the files and objects that hold images.

Only manifests are opened here. A folder of archives is listed; `sources/plan.py` reads the archives.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsspec.utils

from crackbatch.archives.kinds import kind_of, why_unopened
from crackbatch.archives.members import ARCHIVE_SCHEMES, Listing, Object, is_hidden
from crackbatch.errors import CrackbatchError, RunError, SourceError
from crackbatch.images.formats import RAW_EXTENSIONS, describe_extensions
from crackbatch.sources.manifest import Manifest, read_manifest
from crackbatch.sources.prefixes import ANYWHERE, Prefixes
from crackbatch.sources.rows import NO_FILE
from crackbatch.storage import locations, objects
from crackbatch.storage.buckets import Entry, list_objects
from crackbatch.storage.redaction import masked, reason_of, redact
from crackbatch.storage.retry import FIRST_TRIES, is_answer, is_credential, is_transient, retrying

_WRITTEN = ("predictions", "runs", "maps")  # the folders below --out that scoring writes to
_WITH_SERVER = ("http", "https", "ftp", "sftp")  # the URLs of these schemes name a server


def check_sources(sources: locations.Location | Sequence[locations.Location]) -> list[str]:
    """Return the given sources, one or several, as text; raise SourceError if one is not valid or if there are none."""
    names = [os.fspath(name) for name in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    if not names:
        raise SourceError("no source: give a folder, an archive, an image or a manifest")
    if not all(names):
        raise SourceError("a source must not be empty; write . for the current folder")
    if inside := [name for name in names if locations.scheme(name) in ARCHIVE_SCHEMES]:
        raise SourceError(f"{masked(inside[0])} is inside an archive; give the archive or a manifest of its images")
    return names


def list_source(
    source: str,
    extensions: frozenset[str],
    listing: Listing,
    skip: Iterable[str] = (),
    prefixes: Prefixes = ANYWHERE,
) -> Iterator[Object | Manifest]:
    """Yield the objects and the manifest of one source, without the files that runs wrote.

    `skip` are output locations; images beside the files of runs are listed. Local files come in the order of their
    names, remote ones in no order. Raises SourceError if the source does not exist or cannot be read, RunError if its
    storage fails.
    """
    location = locations.normalize(source)
    written = (locations.join(locations.normalize(out), name, "") for out in skip for name in _WRITTEN)
    # A source inside such a folder is listed.
    below = tuple(folder for folder in written if not f"{location}/".startswith(folder))
    list_all = _list_local if locations.is_local(location) else _list_remote
    yield from list_all(location, source, extensions, listing, below, prefixes)


def _is_written(location: str, below: tuple[str, ...], extensions: frozenset[str]) -> bool:
    """Whether a run wrote the file. Of its files, only published tables and maps are named like images or archives."""
    if not location.startswith(below):
        return False
    interesting, kind = _classify(locations.file_name(location), extensions)
    return not interesting or (
        kind == "parquet" and re.search(r"/(predictions|maps)/date=[^/]*/[^/]*$", location) is not None
    )


def _classify(name: str, extensions: frozenset[str]) -> tuple[bool, str | None]:
    """Return whether a file is an image or archive by its name, and the kind of archive."""
    if kind := kind_of(name):
        return True, kind
    return os.path.splitext(name)[1].lower() in extensions, None


def _pass_over(location: str, listing: Listing) -> None:
    """Count a file that is not an image; note an archive that is not opened."""
    name = locations.file_name(location)
    if unopened := why_unopened(name):
        listing.leave_unopened(location.removesuffix(name[len(unopened[0]) :]), unopened[1])
    else:
        pass_over_name(name, listing)


def pass_over_name(name: str, listing: Listing) -> None:
    """Count a file that is not an image, by its extension."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in RAW_EXTENSIONS:
        listing.pass_over(f"{suffix} files (camera raws: export JPEGs from them)")
    else:
        listing.pass_over(f"{suffix} files" if suffix and len(suffix) <= 16 else "files without an extension")


def _list_local(
    location: str,
    source: str,
    extensions: frozenset[str],
    listing: Listing,
    written: tuple[str, ...],
    prefixes: Prefixes,
) -> Iterator[Object | Manifest]:
    if os.path.isdir(location):
        yield from _walk_local([location], location, extensions, listing, written, prefixes)
    elif os.path.lexists(location):
        yield from _single(location, source, extensions, _local_object)
    elif _is_glob(location):
        yield from _glob_local(location, extensions, listing, written, prefixes)
    else:
        raise SourceError(f"no such file or folder: {masked(source)}")


def _glob_local(
    pattern: str, extensions: frozenset[str], listing: Listing, written: tuple[str, ...], prefixes: Prefixes
) -> Iterator[Object | Manifest]:
    """Yield the files that a glob matches and, for a glob without `**`, those below the folders that it matches."""
    filesystem, path = objects.filesystem(pattern)
    folders = []
    for found in sorted(filesystem.glob(path)):
        if os.path.isfile(found):
            yield from _from_glob(found, pattern, extensions, listing)
        elif "**" in pattern or not os.path.isdir(found):
            continue
        elif is_hidden(found[len(_fixed_part(pattern)) :]):
            listing.pass_over("hidden folders")
        else:
            folders.append(found)
    yield from _walk_local(folders, pattern, extensions, listing, written, prefixes)


def _walk_local(
    tops: list[str],
    location: str,
    extensions: frozenset[str],
    listing: Listing,
    written: tuple[str, ...],
    prefixes: Prefixes,
) -> Iterator[Object | Manifest]:
    """Yield the files below folders; symbolic links are followed, and each real folder is entered only once."""
    entered: set[tuple[int, int]] = set()
    waiting = tops[::-1]
    while waiting:
        folder = waiting.pop()
        if prefixes.refusal(folder):
            listing.pass_over("folders that are not below --only-below")
            continue
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                listing.pass_over("folders linked again")
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if folder == location:
                raise SourceError(f"cannot read {location}: {error.strerror}") from None
            if folder.startswith(written) and isinstance(error, FileNotFoundError):  # a run that is ending removed it
                continue
            listing.problems.append(f"{masked(folder)}: cannot be listed ({error.strerror})")
            continue
        folders = []
        for entry in entries:
            if _is_folder(entry):
                if is_hidden(entry.name):
                    listing.pass_over("hidden folders")
                else:
                    folders.append(entry.path)
            elif _is_written(entry.path, written, extensions):
                continue
            elif is_hidden(entry.name):
                listing.pass_over("hidden files")
            else:
                interesting, kind = _classify(entry.name, extensions)
                if not interesting:
                    _pass_over(entry.path, listing)
                elif not os.path.exists(entry.path) or entry.is_file():
                    yield _local_object(entry.path, kind, entry)
                else:
                    listing.pass_over("special files")
        waiting.extend(reversed(folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _local_object(path: str, kind: str | None, entry: os.DirEntry[str] | None = None) -> Object:
    try:
        status = entry.stat() if entry else os.stat(path)
    except OSError as error:  # a broken link, or removed while listing
        return Object(path, None, "", kind, "missing", f"{error.strerror}: {redact(path)}")
    if not stat.S_ISREG(status.st_mode):
        return Object(path, None, "", kind, "not_an_image", NO_FILE)
    return Object(path, status.st_size, locations.local_version(status), kind)


def _single(location: str, source: str, extensions: frozenset[str], make: Any) -> Iterator[Object | Manifest]:
    """Yield one given file: an image, an archive or a manifest."""
    name = locations.file_name(location)
    interesting, kind = _classify(name, extensions)
    if name.lower().endswith(".csv") or kind == "parquet":
        manifest = read_manifest(location)
        if manifest is not None:
            yield manifest
            return
    if not interesting and (unopened := why_unopened(name)):
        raise SourceError(f"{masked(source)}: {unopened[1]}")
    if not interesting:
        raise SourceError(
            f"{masked(source)} is neither an image ({describe_extensions(extensions)}),"
            " an archive (.zip, .tar, .tar.gz, …, .parquet) nor a manifest (.csv);"
            " if it is an image, add its extension with --extensions"
        )
    yield make(location, kind)


def _from_glob(
    location: str, pattern: str, extensions: frozenset[str], listing: Listing
) -> Iterator[Object | Manifest]:
    fixed = _fixed_part(pattern)
    interesting, kind = _classify(locations.file_name(location), extensions)
    if is_hidden(location[len(fixed) :]):
        listing.pass_over("hidden files")
    elif interesting:
        yield _local_object(location, kind)
    else:
        _pass_over(location, listing)


def root_of(source: str) -> str:
    """Return the location above all images of a source; for a glob, the folder above its first wildcard."""
    location = locations.normalize(source)
    is_glob = _is_glob(location) and not locations.is_web(location)
    return _fixed_part(location) if is_glob and not os.path.lexists(location) else location


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


def _fixed_part(pattern: str) -> str:
    """Return the folder above the first wildcard of a glob."""
    return os.path.dirname(pattern[: min(pattern.find(c) for c in "*?[" if c in pattern)])


def _list_remote(
    location: str,
    source: str,
    extensions: frozenset[str],
    listing: Listing,
    written: tuple[str, ...],
    _: Prefixes,  # objects link to nothing, and links of web pages are followed below the source only
) -> Iterator[Object | Manifest]:
    filesystem, path = _open_storage(location, source)

    def make(_location: str, archive: str | None) -> Object:
        info = objects.info(location)
        return _remote_object(location, info.get("size"), locations.version(info), archive)

    # A server that never answers is probably a mistyped name; one that stops answering later is a failure.
    is_known = locations.scheme(location) not in _WITH_SERVER
    try:
        filesystem.invalidate_cache()
        is_glob = _is_glob(path) and not locations.is_web(location)
        root = _fixed_part(path) if is_glob else path
        name = locations.file_name(location)
        is_file_name = _classify(name, extensions)[0] or name.lower().endswith(".csv")
        is_file = _is_file(filesystem, root, is_file_name)
        is_known = True
        if is_file and is_file_name and not is_glob:
            yield from _single(location, source, extensions, make)
            return
        entries = _glob_remote(filesystem, path) if is_glob else _below_remote(filesystem, path)
        is_empty = True
        for entry in entries:
            is_empty = False
            full = locations.locate(entry.path, location)
            if not _is_written(full, written, extensions):
                yield from _keep(entry, full, entry.path[len(root) :].lstrip("/"), extensions, listing)
    except FileNotFoundError as error:
        if error.__cause__ is not None:
            raise _unlisted(error.__cause__, location, source, is_known) from None
        raise SourceError(f"no such object or prefix: {masked(source)}") from None
    except CrackbatchError:
        raise
    except Exception as error:  # each cloud library has its own exceptions
        raise _unlisted(error, location, source, is_known) from None
    if is_empty and not is_glob:
        raise SourceError(f"no such object or prefix: {masked(source)}")


def _open_storage(location: str, source: str) -> tuple[Any, str]:
    """Open a storage as `objects.filesystem` does; also handle fsspec classes that need more than a URL."""
    try:
        return objects.filesystem(location)
    except CrackbatchError:
        raise
    except (TypeError, AttributeError) as error:
        why = f"a URL alone does not open {locations.scheme(location)}:// ({reason_of(error, source)})"
        raise SourceError(f"cannot read {masked(source)}: {why}") from None
    except Exception as error:  # each cloud library has its own exceptions
        raise _unlisted(error, location, source, is_known=False) from None


def _unlisted(error: BaseException, location: str, source: str, is_known: bool) -> CrackbatchError:
    """Return a SourceError for a source that cannot be listed, a RunError if it may be listed later."""
    objects.check_credentials(error, location)
    why = f"cannot read {masked(source)}: {reason_of(error, source)}"
    can_pass = is_transient(error) and (is_known or is_answer(error))
    return RunError(f"{why}; run again") if can_pass else SourceError(why)


def _below_remote(filesystem: Any, path: str) -> Iterator[Entry]:
    """Yield everything below a prefix; if nothing is there, the object of that name."""
    is_empty = True
    for page in list_objects(filesystem, path):
        is_empty = False
        yield from page
    if is_empty and (info := retrying(lambda: objects.look_up(filesystem, path)))["type"] == "file":
        yield Entry(path, info.get("size"), locations.version(info))


def _glob_remote(filesystem: Any, pattern: str) -> Iterator[Entry]:
    """Yield the files that a glob matches, as fsspec does, without listing more levels than the glob has.

    For a glob without `**`, the folders that it matches are listed too.
    """
    root, depth = _fixed_part(pattern), pattern.count("/") + 1
    is_deep = "**" in pattern
    levels = None if is_deep else pattern[len(root) :].lstrip("/").count("/") + 1
    matches = re.compile(fsspec.utils.glob_translate(pattern)).match

    def is_matched(path: str) -> bool:
        return bool(matches(path if is_deep else "/".join(path.split("/")[:depth])))

    for page in list_objects(filesystem, root, levels, is_matched):
        yield from (entry for entry in page if is_matched(entry.path))


def _keep(entry: Entry, location: str, relative: str, extensions: frozenset[str], listing: Listing) -> Iterator[Object]:
    interesting, archive = _classify(locations.file_name(location), extensions)
    if is_hidden(relative):
        listing.pass_over("hidden files")
    elif location.endswith("/"):  # marks an empty folder
        return
    elif interesting:
        yield _remote_object(location, entry.size, entry.version, archive)
    else:
        _pass_over(location, listing)


def _is_file(filesystem: Any, path: str, is_file_name: bool) -> bool:
    """Whether there is an object; unlike fsspec's `isfile`, this raises an error if the storage cannot be asked."""
    try:
        return bool(retrying(lambda: objects.look_up(filesystem, path), FIRST_TRIES)["type"] == "file")
    except FileNotFoundError:
        return False
    except Exception as error:  # each cloud library has its own exceptions
        if is_file_name or is_transient(error) or is_credential(error):
            raise
        return False  # a user without access to the bucket may still list below it


def _remote_object(location: str, size: int | None, version: str, kind: str | None) -> Object:
    return Object(location, None if size is None else int(size), version, kind)
