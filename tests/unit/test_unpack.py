"""Archives that come from elsewhere.

Guarantees:
- tar, plain or compressed in any usual way, and zip are unpacked alike, whatever the file is called; what macOS adds to
  them is left out;
- an archive with an absolute path, a way out of its folder, a link, a device, or a name that is not UTF-8, too long or
  holds a NUL is refused, by archive and member, and so is one that is cut off, damaged, empty, none at all, or lies
  about lengths; nothing of it stays;
- one that would not fit on the disk is told before it is tried.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advdistill.data.unpack import unpack
from advdistill.errors import DataError, RunError

FILES = {"a/1.txt": b"one", "a/b/2.txt": b"two" * 50_000, "ünï/3.txt": b"", "A/1.txt": b"upper"}


def tar_of(members: dict[str, Any]) -> bytes:
    """Members are bytes, a `TarInfo` to be added as it is, or None for a folder."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            if isinstance(content, bytes):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return data.getvalue()


def zip_of(members: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def special(name: str, kind: bytes, leads_to: str = "") -> dict[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, leads_to
    return {name: info}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("how", PACKED)
def test_tar(tmp_path: Path, how: str) -> None:
    (tmp_path / "archive").write_bytes(PACKED[how](tar_of({"./": None, "./a": None, **FILES})))
    shown: list[tuple[str, int, int]] = []
    assert unpack(tmp_path / "archive", tmp_path / "out", lambda *told: shown.append(told)) == 4
    assert tree(tmp_path / "out") == FILES
    assert [what for what, _, _ in shown] == ["unpacking archive"] * 4
    assert all(0 < done <= total == (tmp_path / "archive").stat().st_size for _, done, total in shown)


def test_zip(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(zip_of({"empty/": b"", **FILES}))
    assert unpack(tmp_path / "archive", tmp_path / "out") == 4
    assert tree(tmp_path / "out") == FILES and (tmp_path / "out/empty").is_dir()


def test_a_zip_that_does_not_say_that_its_names_are_utf8(tmp_path: Path) -> None:
    data = zip_of({"\u00fc.txt": b"1"}).replace(b"PK\x03\x04\x14\0\0\x08", b"PK\x03\x04\x14\0\0\0")
    data = data.replace(b"PK\x01\x02\x14\x03\x14\0\0\x08", b"PK\x01\x02\x14\x03\x14\0\0\0")
    (tmp_path / "archive").write_bytes(data)
    unpack(tmp_path / "archive", tmp_path / "out")
    assert tree(tmp_path / "out") == {"\u00fc.txt": b"1"}
    (tmp_path / "archive").write_bytes(data.replace(b"\xc3\xbc.txt", b"\xfc\xfc.txt"))
    with pytest.raises(DataError, match="name that is not UTF-8"):
        unpack(tmp_path / "archive", tmp_path / "other")


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_what_macos_adds_is_left_out(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    (tmp_path / "archive").write_bytes(pack({"a/1": b"1", "__MACOSX/a/._1": b"x", "a/._1": b"x"}))
    assert unpack(tmp_path / "archive", tmp_path / "out") == 1
    assert tree(tmp_path / "out") == {"a/1": b"1"}


def link_in_zip(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


REFUSED = {
    "absolute": (tar_of({"/etc/passwd": b"x"}), "'/etc/passwd' has an absolute path"),
    "up": (tar_of({"good": b"1", "a/../../evil": b"x"}), "'a/../../evil' leads out of the folder"),
    "drive": (tar_of({"C:/evil": b"x"}), "'C:/evil' has an absolute path"),
    "backslash": (tar_of({"a\\..\\evil": b"x"}), "leads out of the folder"),
    "symbolic link": (tar_of({"good": b"1", **special("l", tarfile.SYMTYPE, "/etc")}), "'l' is a link"),
    "link to itself": (tar_of(special("l", tarfile.SYMTYPE, "l")), "'l' is a link"),
    "hard link": (tar_of({"good": b"1", **special("l", tarfile.LNKTYPE, "good")}), "'l' is a link"),
    "device": (tar_of(special("d", tarfile.CHRTYPE)), "'d' is neither a file nor a folder"),
    "pipe": (tar_of(special("p", tarfile.FIFOTYPE)), "'p' is neither a file nor a folder"),
    "not UTF-8": (tar_of({"b\udcff.txt": b"x"}), r"b\\udcff.txt' has a name that is not UTF-8"),
    "long": (tar_of({"n" * 300: b"x"}), "has a name that is too long"),
    "deep": (tar_of({"d/" * 80 + "f": b"x"}), "has a name that is too long"),
    "file and folder": (tar_of({"a": b"1", "a/b": b"2"}), "'a/b' stands for a file and for a folder"),
    "zip absolute": (zip_of({"/etc/passwd": b"x"}), "has an absolute path"),
    "zip up": (zip_of({"good": b"1", "../evil": b"x"}), "'../evil' leads out of the folder"),
    "zip link": (zip_of({link_in_zip("l"): b"/etc"}), "'l' is a link"),
    "zip NUL": (zip_of({"a-b": b"x"}).replace(b"a-b", b"a\0b"), "has a NUL in its name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    data, why = REFUSED[case]
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError) as error:
        unpack(tmp_path / "x.tar", tmp_path / "in/out")
    assert error.value.message.startswith(f"the archive {tmp_path / 'x.tar'} is refused: ") and error.value.hint
    assert why in error.value.message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "x.tar"]


def resized(data: bytes, size: bytes) -> bytes:
    """A tar whose first header declares another length, with its checksum."""
    head = bytearray(data[:512])
    head[124:136] = size.ljust(12, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data[512:]


WHOLE = tar_of(FILES)
SECOND = 1024  # where the second header begins
DAMAGED = {
    "no archive": b"<html>not found</html>",
    "nothing": b"",
    "cut in a file": WHOLE[:5000],
    "cut before a header": WHOLE[:SECOND],
    "cut in a header": WHOLE[: SECOND + 100],
    "damaged header": WHOLE[:SECOND] + b"x" + WHOLE[SECOND + 1 :],
    "cut gz": gzip.compress(WHOLE)[:-20],
    "wrong gz": gzip.compress(WHOLE)[:-8] + bytes(8),
    "cut xz": lzma.compress(WHOLE)[:-30],
    "negative length": resized(WHOLE, b"\xff" * 12),
    "cut zip": zip_of(FILES)[:-10],
    "zip of a lie": zip_of({"a": b"x" * 5000}).replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little")),
    "zip with other content": zip_of({"a": b"abc"}).replace(b"KLJ", b"KLK"),
    "zip with a password": zip_of({"a": b"abc"}).replace(b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1"),
    "no files": tar_of({"a": None}),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(tmp_path: Path, case: str) -> None:
    (tmp_path / "x").write_bytes(DAMAGED[case])
    with pytest.raises(DataError, match=r"the archive \S+/x (cannot be read: \S|holds no files)") as error:
        unpack(tmp_path / "x", tmp_path / "out")
    assert "fetch it again" in error.value.hint
    assert [path.name for path in tmp_path.rglob("*")] == ["x"]


@pytest.mark.parametrize("data", [resized(WHOLE, b"77777777777"), zip_of({"a": b"x" * 5000})], ids=["tar", "zip"])
def test_no_room(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 4000))  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=r"there is no room for a/1.txt|unpacks to 5,000 bytes, and 4,000 are free"):
        unpack(tmp_path / "x", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["x"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(WHOLE)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*/file/out: Not a directory"):
        unpack(tmp_path / "x", tmp_path / "file/out")
