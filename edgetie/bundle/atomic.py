"""Write outputs completely or not at all: under a temporary name, then renamed."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgetie.bundle.bundle import require_utf8
from edgetie.bundle.names import MANIFEST, STARTER
from edgetie.errors import BundleError

_KINDS = {MANIFEST: "a bundle", STARTER: "a starter"}
"""What a directory with a file of this name is."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_directory(
    destination: str | os.PathLike[str], *, force: bool = False, marker: str = MANIFEST
) -> Iterator[Path]:
    """Write a directory under a temporary name; rename it when the block succeeds.

    Args:
        destination: the directory; must not exist unless ``force`` and it has a ``marker``.
        force: replace an existing directory of the same kind, but no other.
        marker: the file in directories of this kind: ``MANIFEST`` or ``STARTER``.

    Raises:
        BundleError: if the destination is in the way or cannot be written, or the disk is full.
    """
    name = Path(destination)
    check_destination(name, force=force, marker=marker)
    target = name.resolve()
    parents = [parent for parent in target.parents if not parent.exists()]
    try:
        with _staging(name, target, parents) as folder:
            (folder / target.name).mkdir()
            yield folder / target.name
            check_destination(name, force=force, marker=marker)
    finally:
        with contextlib.suppress(OSError):
            for parent in parents:
                parent.rmdir()  # fails on the first that is not empty, which is fine


@contextlib.contextmanager
def atomic_files(destination: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Write files next to ``destination``; move them there when the block succeeds.

    Args:
        destination: the main file. The caller chooses the names of the others.
        force: replace existing files.

    Yields:
        A temporary directory for the files, each under its final name.

    Raises:
        BundleError: if a file is in the way or cannot be written, or the disk is full.
    """
    target = Path(destination)
    require_utf8(target)
    _check_file(target, force)
    with _staging(target, target, []) as folder:
        yield folder
        for file in folder.iterdir():
            _check_file(target.parent / file.name, force)


def _check_file(path: Path, force: bool) -> None:
    if path.is_dir() or (path.exists() and not force):
        raise _already_exists(path)
    if path.exists() and not path.is_file():
        raise BundleError(f"{path}: is not a file, so never replaced; choose another output")


def _already_exists(path: Path) -> BundleError:
    return BundleError(f"{path}: already exists; choose another output", advice={"force": True})


@contextlib.contextmanager
def _staging(name: Path, target: Path, parents: list[Path]) -> Iterator[Path]:
    """Yield a temporary directory; move its contents next to ``target`` when the block succeeds.

    Args:
        name: the output in the words of the caller, for errors.
        target: the output that is moved last.
        parents: missing directories above the output, the innermost first.
    """
    staging = target.parent / f".{target.name}-{secrets.token_hex(8)}"
    try:
        try:
            for parent in reversed(parents):
                parent.mkdir(exist_ok=True)
            staging.mkdir(0o700)
            new, old = staging / "new", staging / "old"
            new.mkdir()
            old.mkdir()
        except OSError as error:
            raise BundleError(
                f"{name}: cannot be written ({error.filename}: {error.strerror}); "
                "choose another output"
            ) from error
        yield new
        others = [path for path in new.iterdir() if path.name != target.name]
        _move([*others, new / target.name], old, target.parent)
    except Exception as error:
        if not _is_disk_full(error):
            raise
        raise BundleError(
            f"{name}: no space left to write it, nothing was written; "
            "free some or choose another output"
        ) from error
    finally:
        try:
            shutil.rmtree(staging, ignore_errors=True)
        except BaseException:  # an interrupt, of which it may make another error
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _move(paths: list[Path], old: Path, folder: Path) -> None:
    """Move files or directories to a folder. If one fails, restore what they replaced.

    A single file is replaced at once: other processes that write or read it never miss it.
    """
    for path in paths:
        path.stat()  # if one is missing nothing moves; those missing later have been moved
    if len(paths) == 1 and paths[0].is_file():
        place = folder / paths[0].name
        if place.exists():
            shutil.copymode(place, paths[0])
        paths[0].replace(place)
        return
    try:
        for path in paths:
            place = folder / path.name
            if place.exists():
                shutil.copymode(place, path)
                place.rename(old / path.name)
            path.rename(place)
    except BaseException:
        for path in paths:
            place = folder / path.name
            if not path.exists():
                place.rename(path)
            if (old / path.name).exists():
                (old / path.name).rename(place)
        raise


def _is_disk_full(error: Exception) -> bool:
    """Return whether a write failed for lack of space, which tokenizers reports as text only."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    return any(f"(os error {number})" in str(error) for number in _NO_SPACE)


def check_destination(
    destination: str | os.PathLike[str], *, force: bool = False, marker: str = MANIFEST
) -> None:
    """Refuse a destination that exists, unless it is empty, or has a ``marker`` and ``force``.

    Raises:
        BundleError: naming the destination.
    """
    name = Path(destination)
    require_utf8(name)
    try:
        target = name.resolve()
        if target == Path.cwd():
            raise BundleError(f"{name}: is the current directory; name a new one below it")
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
        if not (target / marker).is_file():
            raise BundleError(
                f"{name}: exists but is not {_KINDS[marker]}, so never replaced; "
                "choose another output"
            )
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{name}: cannot be used ({reason}); choose another output") from error
    if not force:
        raise _already_exists(name)
