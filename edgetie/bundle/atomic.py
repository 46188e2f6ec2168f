"""Write outputs completely or not at all: under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgetie.bundle.bundle import require_utf8
from edgetie.bundle.names import MANIFEST
from edgetie.errors import BundleError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_directory(
    destination: str | os.PathLike[str], *, force: bool | None = False
) -> Iterator[Path]:
    """Write a directory under a temporary name; rename it when the block succeeds.

    Args:
        destination: the directory; must not exist unless ``force`` and it is a bundle.
        force: replace an existing bundle, but no other directory. With ``None`` nothing is ever
            replaced, and errors do not suggest it.

    Raises:
        BundleError: if the destination is in the way or cannot be written, or the disk is full.
    """
    name = Path(destination)
    check_destination(name, force=force)
    target = name.resolve()
    created = [parent for parent in target.parents if not parent.exists()]
    staging: Path | None = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            mask = os.umask(0)
            os.umask(mask)
            staging.chmod(0o777 & ~mask)  # the mode of a new directory; mkdtemp makes it private
        except OSError as error:
            raise BundleError(
                f"{name}: cannot be created ({error.filename}: {error.strerror}); "
                "choose another output"
            ) from error
        yield staging
        check_destination(name, force=force)
        _swap(staging, target)
    except Exception as error:
        if not _no_space(error):
            raise
        raise BundleError(
            f"{name}: no space left to write it ({error}), nothing was written; "
            "free some or choose another output"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in created:
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
    if target.is_dir() or (target.exists() and not force):
        raise _exists(target)
    if target.exists() and not target.is_file():
        raise BundleError(
            f"{target}: is not a file, so it is never replaced; choose another output"
        )
    staging: Path | None = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        new, old = staging / "new", staging / "old"
        new.mkdir()
        old.mkdir()
        yield new
        files = sorted(new.iterdir(), key=lambda path: path.name == target.name)
        for place in (target.parent / path.name for path in files):
            if place.is_dir() or (place.exists() and not force):
                raise _exists(place)
        _move_in(files, old, target)
    except OSError as error:
        if error.errno is None:
            raise
        space = _no_space(error)
        why = "no space left to write it" if space else f"cannot be written ({error.strerror})"
        raise BundleError(f"{target}: {why}, nothing was written; choose another output") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _exists(path: Path, force: bool | None = False) -> BundleError:
    advice = {} if force is None else {"force": True}
    return BundleError(f"{path}: already exists; choose another output", advice=advice)


def _move_in(files: list[Path], old: Path, target: Path) -> None:
    """Move files next to ``target``; if one fails, restore all of them."""
    placed: list[Path] = []
    try:
        for path in files:
            place = target.parent / path.name
            if place.exists():
                shutil.copymode(place, path)
                place.rename(old / path.name)
            placed.append(place)
            path.rename(place)
    except BaseException:
        for place in placed:
            if (old / place.name).exists():
                (old / place.name).replace(place)
            else:
                place.unlink(missing_ok=True)
        raise


def _no_space(error: Exception) -> bool:
    """Return whether a write failed for lack of space, which tokenizers reports as text only."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    return any(f"(os error {number})" in str(error) for number in _NO_SPACE)


def _swap(staging: Path, target: Path) -> None:
    """Replace ``target`` by ``staging``; restore it if that fails."""
    if not target.exists():
        staging.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        target.rename(old / target.name)
        staging.rename(target)
    except BaseException:
        if not target.exists():
            (old / target.name).rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_destination(destination: str | os.PathLike[str], *, force: bool | None = False) -> None:
    """Refuse a destination that exists, unless it is empty, or is a bundle and ``force``.

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
        if not (target / MANIFEST).is_file():
            raise BundleError(
                f"{name}: exists but is not a bundle, so never replaced; choose another output"
            )
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{name}: cannot be used ({reason}); choose another output") from error
    if not force:
        raise _exists(name, force)
