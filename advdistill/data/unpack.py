"""Archives, distrusted: every member is looked at before anything of it is written.

The data sets that come this way consist of folders and plain files with sensible names. Whatever else stands in an
archive is a mistake or an attack, and the whole archive is refused.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from advdistill.errors import DataError, RunError

Show = Callable[[str, int, int], None]
"""`show(what, done, total)`, both in bytes; total 0: not known."""

_BLOCK = 1 << 20
_MOST_BLOCKS_BEHIND = 4096
_OURS = ".advdistill"
_MOST_BYTES_OF_A_NAME, _MOST_BYTES_OF_A_PATH, _MOST_FOLDERS = 255, 2000, 64
_UNREADABLE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError,
    RuntimeError,  # zipfile's word for a password, and, as NotImplementedError, for an unknown compression
)  # fmt: skip


def unpack(archive: Path, into: Path, show: Show = lambda what, done, total: None) -> int:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive; what macOS adds to archives is left out.

    Args:
        into: a folder that is made for it; it is removed again if anything is wrong.

    Returns:
        How many files there were.

    Raises:
        DataError: it is no such archive, is damaged or empty, or has a member that is refused; names it.
        RunError: there is no room for it, or the folder cannot be written.
    """
    with writing(into):
        into.mkdir(parents=True)
    try:
        count = _unpacked(archive, into, show)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    if not count:
        shutil.rmtree(into)
        raise DataError(f"the archive {archive} holds no files", "fetch it again")
    return count


def _unpacked(archive: Path, into: Path, show: Show) -> int:
    count = 0
    try:
        size = archive.stat().st_size
        with archive.open("rb") as raw:
            zipped = raw.read(4) == b"PK\x03\x04"
            raw.seek(0)
            for path, length, content in _zip(archive, raw) if zipped else _tar(archive, raw):
                target = into / path
                if content is None:
                    with _making(archive, path, target):
                        target.mkdir(parents=True, exist_ok=True)
                    continue
                if length > shutil.disk_usage(into).free:
                    raise RunError(
                        f"there is no room for {path} of {archive}: it takes {length:,} bytes",
                        f"free some space where {into.parent} lies",
                    )
                with _making(archive, path, target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file = target.open("wb", buffering=0)
                with file:
                    _copy(content, file, target, length)
                count += 1
                show(f"unpacking {archive.name}", min(raw.tell(), size), size)
    except (RunError, DataError):
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"the archive {archive} cannot be read: {reason}", "fetch it again") from error
    return count


Member = tuple[PurePosixPath, int, "IO[bytes] | None"]
"""Where a member belongs, how long it is, and what is in it; None: it is a folder."""


def _tar(archive: Path, raw: IO[bytes]) -> Iterator[Member]:
    with _opened(raw) as tar:
        for member in tar:
            if member.issym() or member.islnk():
                raise _refused(archive, member.name, "is a link")
            if not (member.isreg() or member.isdir()):
                raise _refused(archive, member.name, "is neither a file nor a folder")
            if (path := _path(archive, member.name)) is not None:
                yield path, member.size, None if member.isdir() else tar.extractfile(member)
        # The checksum of what was compressed stands behind the last member.
        for _ in range(_MOST_BLOCKS_BEHIND):
            if tar.fileobj is None or not tar.fileobj.read(_BLOCK):
                return
        raise tarfile.ReadError("it goes on for gigabytes behind its last member")


def _opened(raw: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=raw, mode="r:*", tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
    except tarfile.ReadError:  # which says so once for every compression that there is
        raise tarfile.ReadError("it is neither a tar nor a zip archive, or is damaged at its very beginning") from None


class _Header(tarfile.TarInfo):
    """A header that is damaged is an error. Tarfile takes it for the end of the archive if others went before, and a
    negative length for a way back, on which it goes round for ever."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
        if bytes(buf) == bytes(tarfile.BLOCKSIZE):
            return super().frombuf(buf, encoding, errors)  # says that this is the end
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from error
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name!r} is of a negative length")
        return member


def _zip(archive: Path, raw: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as file:
        members = file.infolist()
        room = shutil.disk_usage(archive.parent).free
        if (total := sum(member.file_size for member in members)) > room:
            raise RunError(
                f"{archive} unpacks to {total:,} bytes, and {room:,} are free", f"free some space at {archive.parent}"
            )
        for member in members:
            name = _zip_name(archive, member)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind == stat.S_IFLNK:
                raise _refused(archive, name, "is a link")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, name, "is neither a file nor a folder")
            if (path := _path(archive, name)) is None:
                continue
            if member.is_dir():
                yield path, 0, None
            else:
                with file.open(member) as content:
                    yield path, member.file_size, content


def _zip_name(archive: Path, member: zipfile.ZipInfo) -> str:
    """The name, read as UTF-8. Where the archive does not say that it is, zipfile reads it as what always fits."""
    name = member.orig_filename
    if member.flag_bits & 0x800 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        raise _refused(archive, name, "has a name that is not UTF-8") from None


def _path(archive: Path, name: str) -> PurePosixPath | None:
    """Where a member belongs; None where it is left out. Raises DataError where its name is refused."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise _refused(archive, name, "has a name that is not UTF-8") from None
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise _refused(archive, name, "has an absolute path")
    if ".." in re.split(r"[/\\]", name):
        raise _refused(archive, name, "leads out of the folder")
    if parts and parts[0].startswith(_OURS):
        raise _refused(archive, name, "would take the place of what is noted here of fetches")
    if "\0" in name:
        raise _refused(archive, name, "has a NUL in its name")
    if (
        max(lengths, default=0) > _MOST_BYTES_OF_A_NAME
        or sum(lengths) > _MOST_BYTES_OF_A_PATH
        or len(parts) > _MOST_FOLDERS
    ):
        raise _refused(archive, f"{name[:60]}…", "has a name that is too long")
    if not parts or any(part == "__MACOSX" or part.startswith("._") for part in parts):
        return None
    return PurePosixPath(*parts)


def _refused(archive: Path, member: str, why: str) -> DataError:
    shown = member.encode("utf-8", "backslashreplace").decode()
    return DataError(
        f"the archive {archive} is refused: {shown!r} {why}",
        "nothing of it was unpacked; if you trust it, fetch and unpack it by hand",
    )


@contextlib.contextmanager
def _making(archive: Path, path: PurePosixPath, target: Path) -> Iterator[None]:
    with writing(target):
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise _refused(archive, str(path), "stands for a file and for a folder") from None


def _copy(content: IO[bytes], file: IO[bytes], target: Path, length: int) -> None:
    """Raises ValueError where there is less or more than was declared."""
    written = 0
    while block := content.read(_BLOCK):
        written += len(block)
        if written > length:
            break
        with writing(target):
            file.write(block)
    if written != length:
        raise ValueError(f"{target.name} is not as long as it says")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises RunError, which names `path`, where what is done inside fails with the disk."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space; what has come so far is kept" if full else "choose a folder that you may write to"
        raise RunError(f"cannot write {path}: {error.strerror}", hint) from error
