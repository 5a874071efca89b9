"""Where a published data set comes from and what it looks like on disk. Declared by plugins; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file that can be fetched.

    Attributes:
        file: what it is called on disk; no two of a data set may share a name.
        urls: where it lies, in the order in which they are tried; none: another archive has brought it.
        size: its length in bytes; 0: not known.
        sha256, md5: its digest in hexadecimal, as published; "": not published.
        into: folder below the data set's own that it is unpacked into, or that it goes into as it is.
        unpack: it is an archive.
        inside: folder in the archive whose content is meant, such as one that holds all of it; "": the whole.
    """

    file: str
    urls: tuple[str, ...]
    size: int = 0
    sha256: str = ""
    md5: str = ""
    into: str = ""
    unpack: bool = True
    inside: str = ""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A published data set.

    Attributes:
        folder: its own folder below `ADVDISTILL_DATA`.
        needs: paths below it without which it cannot be read; `a|b`: one of them is enough.
        wants: path below it -> what it is read without where that is missing.
        images: how many its splits hold by default, in all. bytes: what they take on disk, about.
        licence: under which terms, in a few words. page: where that is said.
        remotes: files that `advdistill data fetch` brings; empty: only by hand.
        steps: what a person must do by hand, a sentence each.
        gone: why upstream cannot be asked any more; "": it can.
    """

    folder: str
    needs: tuple[str, ...]
    wants: dict[str, str] | None = None
    images: int = 0
    bytes: int = 0
    licence: str = ""
    page: str = ""
    remotes: tuple[Remote, ...] = ()
    steps: tuple[str, ...] = ()
    gone: str = ""
