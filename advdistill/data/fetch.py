"""Bring a published data set here: mirrors in order, resumed where cut off, checked, unpacked, and only then in place.

    for each file of the origin that is not here:
        for each mirror, until one gives the whole file:
            go on with FILE.part, if what it holds is certainly of the same file; else begin anew
            look at length and digest; FILE.part becomes FILE
        unpack it into a folder of its own; move what came of it to where it belongs
    write the receipt; remove the working folder

All this happens in the folder `.advdistill-fetch` within the data set's own. As long as that is there, readers call the
data set incomplete. What is there already is never written over.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from advdistill.data.place import RECEIPT, STATE, WORK, Place, exists, place, unfinished
from advdistill.data.unpack import Show, unpack, writing
from advdistill.errors import DataError, RunError
from advdistill.hooks.manager import host_version
from advdistill.hooks.origin import Origin, Remote

Tell = Callable[[str], None]

HUB = "https://huggingface.co"
_BLOCK = 1 << 18
_NAMED = 50
"""Entries of an archive that its receipt names at most."""
_ARCHIVE = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz|zip)$", re.IGNORECASE)


@dataclass(frozen=True)
class Patience:
    """How long to put up with a server.

    Attributes:
        tries: attempts at a mirror between which not a byte more has come.
        wait: seconds before the second one; twice as many before each further one.
        timeout: seconds without a byte after which a connection counts as cut.
    """

    tries: int = 4
    wait: float = 1.0
    timeout: float = 30.0


@dataclass(frozen=True)
class Fetched:
    """What came of it.

    Attributes:
        place: where the data set is.
        brought: the files that were fetched or unpacked; none: it was there already.
    """

    place: Place
    brought: tuple[str, ...]


def fetch(
    name: str,
    origin: Origin,
    root: str = "",
    *,
    keep: bool = False,
    show: Show = lambda what, done, total: None,
    tell: Tell = lambda line: None,
    patience: Patience = Patience(),
) -> Fetched:
    """Bring what is missing of a data set.

    Args:
        name: what its users call it.
        root: its own folder, or one that holds it; "": the usual place.
        keep: archives stay, in its own folder, once they are unpacked.
        show: is told of progress. tell: is told what else happens, a line each time.

    Raises:
        DataError: no mirror gives a file whole, the network may not be used, an archive is refused, what is there
            already stands in the way, or all or a part can be had by hand only.
        RunError: it cannot be written here, or somebody else is fetching it.
    """
    found = place(origin, root)
    if root and found.state == "missing" and found.folder.name != origin.folder and _holds_others(found.folder):
        root = str(found.folder / origin.folder)
        found = place(origin, root)
    command = shlex.join(["advdistill", "data", "fetch", name, *(["--root", root] if root else [])])
    had = {remote.file for remote in origin.remotes if _is_there(remote, origin, found)}
    all_there = len(had) == len(origin.remotes)
    if found.state == "there" and (all_there or origin.gone):
        return Fetched(found, ())
    if origin.gone or not origin.remotes:
        raise by_hand(name, origin, found.folder, origin.gone or "it can be had by hand only")
    brought: tuple[str, ...] = ()
    if not all_there or found.resume:
        with _claimed(found.folder, name, command, had) as state:
            job = _Job(name, origin, found.folder, state, keep, show, tell, patience)
            brought = tuple(remote.file for remote in origin.remotes if job.bring(remote))
            job.finish()
    after = place(origin, root)
    if after.state != "there":
        raise by_hand(name, origin, after.folder, f"no file that can be fetched holds {', '.join(after.missing)}")
    return Fetched(after, brought)


def _holds_others(folder: Path) -> bool:
    """Whether a folder that may be this data set's own holds others' folders."""
    try:
        return any(each.is_dir() and each.name != WORK for each in folder.iterdir())
    except OSError:
        return False


def by_hand(name: str, origin: Origin, folder: Path, why: str) -> DataError:
    """The error that says why a data set cannot be fetched and what a person can do."""
    steps = list(origin.steps) or ([f"Get it from {origin.page}"] if origin.page else [])
    steps.append(f"It belongs into {folder}, which must hold then: {', '.join(origin.needs) or 'its files'}")
    return DataError(f"{name} cannot be fetched: {why}", _numbered(steps))


def offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _numbered(steps: Iterable[str], before: str = "") -> str:
    return "\n".join([before] * bool(before) + [f"{number}. {step}" for number, step in enumerate(steps, 1)])


def _is_there(remote: Remote, origin: Origin, found: Place) -> bool:
    """Whether what a file brings is there, as far as that can be told before it is: by the paths of the origin that
    its name and folder stand for, or what it has brought before."""
    state = unfinished(found.folder)
    if state:
        return remote.file in state["done"]
    into = remote.into
    target = PurePosixPath(into, remote.file)
    own = [target]
    if remote.unpack:
        before = _received(found.folder).get(remote.file, {}).get("holds", ())
        names = [_ARCHIVE.sub("", remote.file), *before]
        own = [*([PurePosixPath(into)] if into else []), *(PurePosixPath(into, each) for each in names)]
    named = [
        path
        for path in (*origin.needs, *(origin.wants or ()))
        if any(PurePosixPath(each).is_relative_to(mine) for each in path.split("|") for mine in own)
    ]
    if named:
        return not any(path in found.missing or path in found.without for path in named)
    return found.state == "there" or (not remote.unpack and exists(found.folder / target))


@dataclass
class _State:
    """What the working folder knows, on disk at every moment: it is also what marks the data set as incomplete."""

    folder: Path
    command: str
    done: dict[str, Any]

    def save(self) -> None:
        _write(self.folder / STATE, {"command": self.command, "done": self.done})


@contextlib.contextmanager
def _claimed(folder: Path, name: str, command: str, had: set[str]) -> Iterator[_State]:
    """The working folder, for this process alone. If nothing comes of it, no trace is left."""
    work = folder / WORK
    made = [each for each in (folder, *folder.parents) if not exists(each)]
    with _locked(work, name):
        before = unfinished(folder)
        state = _State(work, command, before["done"] if before else {file: {"was there": True} for file in had})
        state.save()
        try:
            yield state
        except BaseException:
            if not before and not state.done.keys() - had and {each.name for each in work.iterdir()} <= {"lock", STATE}:
                shutil.rmtree(work, ignore_errors=True)
                for each in made:
                    with contextlib.suppress(OSError):
                        each.rmdir()
            raise


@contextlib.contextmanager
def _locked(work: Path, name: str) -> Iterator[None]:
    while True:
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
            lock = (work / "lock").open("w")
        with lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(
                    f"another process is fetching {name} into {work.parent}", "wait for it, or stop it"
                ) from error
            if os.fstat(lock.fileno()).st_nlink:
                yield
                return
            # Whoever had it has finished meanwhile and taken the file away: another process may hold the next one.


class _Unusable(Exception):
    """A mirror does not have the file, or not this one."""


class _Cut(Exception):
    """A mirror has not given all of it; it may yet."""


@dataclass
class _Job:
    name: str
    origin: Origin
    folder: Path
    state: _State
    keep: bool
    show: Show
    tell: Tell
    patience: Patience

    def bring(self, remote: Remote) -> bool:
        """Bring one file, unpacked. False where it was there already."""
        if remote.file in self.state.done:
            return False
        given = self._given_at(remote)
        arrived = self.state.folder / remote.file
        facts: dict[str, Any] = {"into": remote.into, "url": ""}
        if there := exists(given):
            arrived = given
            facts |= self._given(remote, given)
        else:
            if not exists(arrived):
                self._download(remote, arrived)
            facts |= _read_memo(arrived)
        if remote.unpack:
            unpacked = self.state.folder / f"{remote.file}.unpacked"
            shutil.rmtree(unpacked, ignore_errors=True)
            try:
                facts["files"] = unpack(arrived, unpacked, self.show)
            except DataError:
                if not there:  # the next time it may be another one
                    _drop(arrived)
                raise
            facts["holds"] = _settle(self._top(remote, unpacked), self.folder / remote.into)
            shutil.rmtree(unpacked, ignore_errors=True)
        if not there and (self.keep or not remote.unpack):
            with writing(given):
                given.parent.mkdir(parents=True, exist_ok=True)
                arrived.replace(given)
        self.state.done[remote.file] = facts
        self.state.save()
        if not there:
            _drop(arrived)
        return not (there and not remote.unpack)

    def _top(self, remote: Remote, unpacked: Path) -> Path:
        """What of an unpacked archive belongs into its place."""
        top = unpacked / remote.inside
        if not top.is_dir():
            raise DataError(f"{remote.file} holds no folder {remote.inside}", "it is not the one that was meant")
        return top

    def finish(self) -> None:
        """Write the receipt; the data set is whole once the working folder has gone."""
        files = _received(self.folder)
        files |= {file: facts for file, facts in self.state.done.items() if "url" in facts}
        told = {
            "name": self.name,
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "by": f"advdistill {host_version()}",
            "licence": self.origin.licence,
            "files": files,
        }
        _write(self.folder / RECEIPT, told)
        with writing(self.state.folder):
            shutil.rmtree(self.state.folder)

    def _given_at(self, remote: Remote) -> Path:
        """Where a file is taken from if somebody has put it there, and where it stays."""
        return self.folder / ("" if remote.unpack else remote.into) / remote.file

    def _given(self, remote: Remote, path: Path) -> dict[str, Any]:
        """Facts of a file that was put here by hand. Raises DataError where it is not the one that is published."""
        facts, wrong = self._measured(remote, path)
        if wrong:
            raise DataError(f"{path} is there already, and {wrong}", "move it away, and it will be fetched")
        return facts

    def _download(self, remote: Remote, path: Path) -> None:
        if offline():
            raise DataError(
                f"{self.name}: HF_HUB_OFFLINE is set, and {remote.file} is not here",
                _numbered(
                    self.origin.steps,
                    f"unset it, or put the file at {self._given_at(remote)} and repeat the command; it comes from "
                    + " or ".join(remote.urls),
                ),
            )
        said = []
        for url in remote.urls:
            try:
                self._from(_mirror(url), remote, path)
                return
            except _Unusable as error:
                said.append(f"{url}: {error}")
                self.tell(f"{remote.file}: {said[-1]}")
        kept = " (it goes on where this ended)" if exists(_part(path)) else ""
        raise DataError(
            "\n  ".join([f"{self.name}: nobody gives {remote.file}:", *said]),
            _numbered(
                self.origin.steps,
                f"repeat the command later{kept}, or when you have put the file at {self._given_at(remote)} yourself",
            ),
        )

    def _from(self, url: str, remote: Remote, path: Path) -> None:
        """Bring a file from one mirror, whole and checked. Raises _Unusable where that cannot be."""
        part, best, failed = _part(path), -1, 0
        inherited = exists(part)
        while True:
            try:
                self._stream(url, remote, path)
            except _Cut as error:
                size = part.stat().st_size if part.exists() else 0
                failed = 1 if size > best >= 0 else failed + 1
                best = max(best, size)
                if failed >= self.patience.tries:
                    if not size:
                        _drop(path)
                    raise _Unusable(str(error)) from error
                time.sleep(min(self.patience.wait * 2 ** (failed - 1), 30))
                continue
            facts, wrong = self._measured(remote, part)
            if not wrong:
                memo = _read_memo(path)
                _write(_memo(path), {"url": memo["url"], **facts})
                with writing(path):
                    _to_disk(part)
                    part.replace(path)
                    _to_disk(path.parent)
                return
            _drop(path)
            if not inherited:
                raise _Unusable(wrong)
            inherited = False  # what was there before may have been to blame

    def _stream(self, url: str, remote: Remote, path: Path) -> None:
        """Go on with, or begin, `FILE.part`; returns when it is as long as it shall be."""
        part, memo = _part(path), _read_memo(path)
        offset = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": f"advdistill/{host_version()}"}
        if offset and _certain(memo, url, remote):
            if offset == memo.get("size"):
                return
            headers["Range"] = f"bytes={offset}-"
            if memo["url"] == url and (validator := memo.get("validator")):
                headers["If-Range"] = validator
        else:
            offset = 0
        if (token := os.environ.get("HF_TOKEN")) and _host(url) == _host(_mirror(HUB + "/")):
            headers["Authorization"] = f"Bearer {token}"
        with _opened(urllib.request.Request(url, headers=headers), part, self.patience.timeout) as answer:
            begin = offset if answer.status == 206 else 0
            total = _length(answer, offset)
            _suits(answer, remote, total, memo if begin else {}, part)
            total = total or remote.size or (memo.get("size", 0) if begin else 0)
            with writing(part):
                if total - begin > shutil.disk_usage(part.parent).free:
                    raise RunError(
                        f"there is no room for {remote.file}: {total - begin:,} bytes are to come",
                        f"free some space where {self.folder} lies, or choose another place with --root",
                    )
                file = part.open("ab" if begin else "wb", buffering=0)
            validator = _validator(answer)
            with file:
                _write(_memo(path), {"url": url, "validator": validator, "size": total})
                self._pour(answer, file, remote, begin, total)

    def _pour(self, answer: Any, file: IO[bytes], remote: Remote, done: int, total: int) -> None:
        what = f"fetching {remote.file}"
        self.show(what, done, total)
        while True:
            try:
                block = answer.read1(_BLOCK)
            except (http.client.HTTPException, OSError) as error:
                raise _Cut(f"cut off after {done:,} bytes: {error or type(error).__name__}") from error
            if not block:
                break
            with writing(Path(file.name)):
                file.write(block)
            done += len(block)
            self.show(what, done, total)
        if done < total:
            raise _Cut(f"cut off after {done:,} of {total:,} bytes")

    def _measured(self, remote: Remote, path: Path) -> tuple[dict[str, Any], str]:
        """What a file is, for the receipt, and what is wrong with it; "": nothing."""
        size, found, weak = path.stat().st_size, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    found.update(block)
                    weak.update(block)
                    self.show(f"checking {remote.file}", file.tell(), size)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
        wrong = ""
        for kind, published, own in (("sha256", remote.sha256, found), ("md5", remote.md5, weak)):
            if published and published.lower() != own.hexdigest():
                wrong = f"its {kind} is {own.hexdigest()}, not {published} as published"
        if remote.size and size != remote.size:
            wrong = f"it is {size:,} bytes long, not {remote.size:,} as published"
        checked = [kind for kind in ("sha256", "md5", "size") if getattr(remote, kind)]
        told = f"{' and '.join(checked)} as published" if remote.sha256 or remote.md5 else "no digest is published"
        return {"size": size, "sha256": found.hexdigest(), "checked": told}, wrong


def _received(folder: Path) -> dict[str, dict[str, Any]]:
    """What the receipt says: file -> facts."""
    try:
        files = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["files"]
        return {str(file): dict(facts) for file, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _memo(path: Path) -> Path:
    """Beside what has come: where it comes from, and how to tell whether that is still the same."""
    return path.with_name(f"{path.name}.json")


def _read_memo(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_memo(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _drop(path: Path) -> None:
    """Take away all that has come of a file."""
    for each in (path, _part(path), _memo(path)):
        each.unlink(missing_ok=True)


def _certain(memo: dict[str, Any], url: str, remote: Remote) -> bool:
    """Whether more may be asked for, to be put behind what is there: the server will say if it is another file by now,
    or the digest will."""
    if remote.sha256 or remote.md5:
        return bool(memo.get("url"))
    return memo.get("url") == url and bool(memo.get("validator"))


def _mirror(url: str) -> str:
    """Where `HF_ENDPOINT` leads to, for what lies on the hub."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return endpoint + url.removeprefix(HUB) if endpoint and url.startswith(HUB + "/") else url


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to the web alone, never from https to http, and takes no secret to another host."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("https", urlsplit(req.full_url).scheme):
            raise urllib.error.HTTPError(req.full_url, code, f"leads to {newurl}", headers, fp)
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None and _host(newurl) != _host(req.full_url):
            found.remove_header("Authorization")
        return found


@contextlib.contextmanager
def _opened(request: urllib.request.Request, part: Path, timeout: float) -> Iterator[Any]:
    """The answer. Raises _Unusable or _Cut where there is none."""
    if not request.full_url.startswith(("http://", "https://")):
        raise _Unusable("it is no address on the web")
    try:
        answer = urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        why = f"{error.code} {error.reason}"
        if error.code == 416:  # what is here is longer than what is there
            part.unlink(missing_ok=True)
            raise _Cut(why) from error
        if error.code in (408, 429) or error.code >= 500:
            raise _Cut(why) from error
        raise _Unusable(why) from error
    except urllib.error.URLError as error:
        hopeless = isinstance(error.reason, (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError))
        raise (_Unusable if hopeless else _Cut)(str(error.reason)) from error
    except (http.client.HTTPException, OSError) as error:
        raise _Cut(str(error) or type(error).__name__) from error
    with answer:
        yield answer


def _length(answer: Any, offset: int) -> int:
    """How long the whole file is; 0: the server does not say. Raises _Unusable where it gives another part of it."""
    if answer.status == 206:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not given or int(given[1]) != offset:
            raise _Unusable("it gives another part than was asked for")
        return 0 if given[2] == "*" else int(given[2])
    if answer.status != 200:
        raise _Unusable(f"it answers with {answer.status}")
    return int(answer.length or 0)


def _suits(answer: Any, remote: Remote, total: int, memo: dict[str, Any], part: Path) -> None:
    """Raise _Unusable where this cannot be the file, and _Cut where it is not the one that has begun to come."""
    if total and memo.get("size", total) not in (0, total):
        part.unlink(missing_ok=True)
        raise _Cut("it has changed meanwhile")
    if total and remote.size and total != remote.size:
        raise _Unusable(f"it is {total:,} bytes long, not {remote.size:,} as published")
    if not (total or answer.chunked or remote.size or remote.sha256 or remote.md5):
        raise _Unusable("it does not say how long the file is, so nobody could tell whether it is whole")
    packed = answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity")
    if packed and not remote.file.endswith((".gz", ".tgz")):
        raise _Unusable("it compresses the file")
    if answer.headers.get_content_type() == "text/html" and not remote.file.endswith((".html", ".htm")):
        raise _Unusable("it answers with a web page")


def _validator(answer: Any) -> str:
    """What tells whether the file is still the same, byte for byte; "": nothing does."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _settle(unpacked: Path, folder: Path) -> list[str]:
    """Move all that lies in one folder into another, which may hold some of it.

    Returns:
        What that is, `_NAMED` at most.

    Raises:
        DataError: something else is there under one of the names; then nothing has been moved.
    """
    for file in unpacked.rglob("*"):
        there = folder / file.relative_to(unpacked)
        if exists(there) and (
            file.is_dir() != there.is_dir() or (file.is_file() and file.stat().st_size != there.stat().st_size)
        ):
            raise DataError(f"{there} is in the way: it is not the one that is published", "move it away, and repeat")
    names = sorted(each.name for each in unpacked.iterdir())
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _move(unpacked, folder)
    return names[:_NAMED]


def _move(source: Path, folder: Path) -> None:
    for each in sorted(source.iterdir()):
        there = folder / each.name
        if not there.exists():
            each.rename(there)
        elif each.is_dir():
            _move(each, there)


def _write(path: Path, facts: Any) -> None:
    """Write JSON, whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    with writing(path):
        new.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _to_disk(new)
        new.replace(path)


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
