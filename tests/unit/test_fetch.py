"""Fetching published data sets, from a server on this machine that does what servers do.

Guarantees:
- what is cut off goes on where it ended, in this call, in the next one and after a killed process, but never with bytes
  of another file: one that has changed, lies on another mirror without a digest, or has nothing to be known by is begun
  anew, and so it is where a server knows no ranges;
- mirrors are asked in order; 404s, web pages, wrong lengths and digests, and files whose end nobody knows lead to the
  next one, and no file that is not whole ever bears its name;
- redirects are followed, with no token to another host; the hub's endpoint, token and offline mode are obeyed;
- until all is in place the data set counts as incomplete and its readers are told how to go on; a receipt is written
  last; what cannot be fetched leaves no trace;
- what is there is neither fetched again nor written over, and files that were brought by hand are used;
- archives that are refused leave nothing; only one process fetches at a time; a full disk and a folder that cannot be
  written are polite errors;
- a data set whose upstream is gone, or that was never to be fetched, names the steps to be done by hand.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from advdistill.data import fetch as fetching
from advdistill.data.fetch import Patience, fetch
from advdistill.data.place import RECEIPT, WORK, data_folder, place
from advdistill.errors import DataError, MissingData, RunError
from advdistill.hooks.origin import Origin, Remote

AT_ONCE = Patience(tries=3, wait=0, timeout=5)


def tar_of(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


FILES = {"pictures/a/1.jpg": random.Random(0).randbytes(300_000), "pictures/b/2.jpg": b"2"}
TAR = tar_of(FILES)
SPLIT = b'{"train": []}'


@dataclass
class Reply:
    """What a server does once.

    Attributes:
        cut: bytes of the answer after which the connection ends. hold: it stays open then, until this is set.
        ranges: whether parts are given. sized: whether it says how long the answer is. tag: the ETag.
    """

    body: bytes = TAR
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hold: threading.Event | None = None
    ranges: bool = True
    sized: bool = True
    tag: str = '"1"'


class Server:
    """Answers by address: each time with the next reply, the last of which stays."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, dict(self.headers)))
                replies = server.replies.get(self.path, [Reply(b"no", 404)])
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.answer(replies.pop(0) if len(replies) > 1 else replies[0])
                self.close_connection = True

            def answer(self, reply: Reply) -> None:
                begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
                if reply.status != 200 or not reply.ranges or self.headers.get("If-Range", reply.tag) != reply.tag:
                    begin = 0
                body = reply.body[begin:]
                beyond = begin and not body
                self.send_response(416 if beyond else 206 if begin else reply.status)
                if begin:
                    self.send_header("Content-Range", f"bytes {begin}-{len(reply.body) - 1}/{len(reply.body)}")
                for name, value in {"Content-Type": "application/x", "ETag": reply.tag, **reply.headers}.items():
                    self.send_header(name, value)
                if reply.sized:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: reply.cut])
                self.wfile.flush()
                if reply.hold:
                    reply.hold.wait(10)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def ranges(self, path: str = "/x.tar") -> list[str | None]:
        """Which parts were asked for."""
        return [headers.get("Range") for asked, headers in self.asked if asked == path]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ADVDISTILL_DATA", str(tmp_path / "data"))
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def remote(server: Server, *paths: str, **more: Any) -> Remote:
    urls = tuple(path if "://" in path else server.url + path for path in paths or ("/x.tar",))
    return Remote(**{"file": "x.tar", "urls": urls, **more})


def published(*remotes: Remote, **more: Any) -> Origin:
    return Origin(**{"folder": "toys", "needs": ("pictures",), "remotes": remotes, **more})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def brought(folder: Path) -> dict[str, bytes]:
    """What is in the folder beside the receipt."""
    return {name: content for name, content in tree(folder).items() if name != RECEIPT}


def refused(origin: Origin, kind: type[DataError | RunError] = DataError, **how: Any) -> str:
    with pytest.raises(kind) as error:
        fetch("toys", origin, patience=AT_ONCE, **how)
    return f"{error.value.message}\n{error.value.hint}"


SHA = hashlib.sha256(TAR).hexdigest()
MD5 = hashlib.md5(TAR).hexdigest()


@pytest.mark.parametrize("digests", [{}, {"sha256": SHA}, {"md5": MD5.upper(), "size": len(TAR)}], ids=str)
def test_a_fetch(server: Server, tmp_path: Path, digests: dict[str, Any]) -> None:
    server.replies["/x.tar"] = [Reply()]
    origin = published(remote(server, **digests), licence="CC0")
    assert place(origin).state == "missing"
    shown: list[tuple[str, int, int]] = []
    done = fetch("toys", origin, show=lambda *told: shown.append(told))
    assert done.brought == ("x.tar",)
    assert done.place.folder == tmp_path / "data/toys" == data_folder(origin)
    assert (done.place.state, done.place.resume) == ("there", "")
    assert brought(done.place.folder) == FILES
    receipt = json.loads((done.place.folder / RECEIPT).read_text())
    checked = " and ".join([name for name in digests if name != "size"] + ["size"] * ("size" in digests))
    assert receipt["name"] == "toys" and receipt["licence"] == "CC0"
    assert receipt["files"] == {
        "x.tar": {
            "into": "",
            "url": f"{server.url}/x.tar",
            "size": len(TAR),
            "sha256": SHA,
            "checked": f"{checked} as published" if checked else "no digest is published",
            "files": 2,
            "holds": ["pictures"],
        }
    }
    assert list(dict.fromkeys(what.split()[0] for what, _, _ in shown)) == ["fetching", "checking", "unpacking"]
    assert ("fetching x.tar", len(TAR), len(TAR)) in shown
    again = fetch("toys", origin)
    assert again.brought == () and len(server.asked) == 1


def test_archives_are_kept_on_request_and_plain_files_lie_where_they_belong(server: Server, tmp_path: Path) -> None:
    server.replies |= {"/x.tar": [Reply()], "/s.json": [Reply(SPLIT)]}
    origin = published(
        remote(server, into="deep/er"),
        remote(server, "/s.json", file="split.json", into="lists", unpack=False),
        needs=("deep/er/pictures", "lists/split.json"),
    )
    done = fetch("toys", origin, str(tmp_path / "mine"), keep=True)
    wanted = {f"deep/er/{name}": content for name, content in FILES.items()}
    assert done.place.folder == tmp_path / "mine"
    assert brought(tmp_path / "mine") == {**wanted, "lists/split.json": SPLIT, "x.tar": TAR}
    assert not (tmp_path / "data").exists()


def test_an_archive_that_holds_the_own_folder_and_another_archive(server: Server, tmp_path: Path) -> None:
    inner = tar_of(FILES)
    server.replies["/x.tar"] = [Reply(tar_of({"toys/inner.tar": inner, "toys/README": b"r", "beside": b"b"}))]
    origin = published(remote(server, inside="toys"), Remote(file="inner.tar", urls=()))
    done = fetch("toys", origin, str(tmp_path / "mine"))
    assert done.brought == ("x.tar", "inner.tar")
    assert brought(tmp_path / "mine") == {**FILES, "inner.tar": inner, "README": b"r"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    server.replies["/x.tar"] = [Reply(tar_of({"other/1": b"1"}))]
    assert "x.tar holds no folder toys" in refused(origin)


# Cut off


@pytest.mark.parametrize("sha256", ["", SHA])
def test_a_cut_connection_goes_on_where_it_ended(server: Server, sha256: str) -> None:
    server.replies["/x.tar"] = [Reply(cut=1000), Reply(status=503), Reply(cut=99_000), Reply(cut=0), Reply()]
    done = fetch("toys", published(remote(server, sha256=sha256)), patience=AT_ONCE)
    assert brought(done.place.folder) == FILES
    assert server.ranges() == [None, "bytes=1000-", "bytes=1000-", "bytes=100000-", "bytes=100000-"]


def test_patience_ends_where_nothing_more_comes(server: Server) -> None:
    server.replies["/x.tar"] = [Reply(cut=1000), Reply(cut=0)]
    origin = published(remote(server))
    said = refused(origin)
    assert f"nobody gives x.tar:\n  {server.url}/x.tar: cut off after 1,000 of {len(TAR):,} bytes" in said
    assert "it goes on where this ended" in said
    assert len(server.asked) == 3
    server.replies["/x.tar"] = [Reply()]
    assert brought(fetch("toys", origin).place.folder) == FILES
    assert server.ranges()[-1] == "bytes=1000-"


def test_while_it_is_not_finished_the_data_set_is_incomplete(server: Server, tmp_path: Path) -> None:
    server.replies |= {"/x.tar": [Reply()], "/s.json": [Reply(SPLIT, cut=3), Reply(status=503)]}
    origin = published(remote(server), remote(server, "/s.json", file="split.json", unpack=False))
    refused(origin)
    found = place(origin)
    assert found.state == "incomplete" and found.missing == ()
    assert found.resume == "advdistill data fetch toys"
    with pytest.raises(MissingData, match="is incomplete") as error:
        data_folder(origin)
    assert "go on with: advdistill data fetch toys" in error.value.hint
    server.replies["/s.json"] = [Reply(SPLIT)]
    assert fetch("toys", origin).brought == ("split.json",)
    assert place(origin).state == "there"
    assert server.ranges() == [None], "fetched twice"
    assert list(json.loads((tmp_path / "data/toys" / RECEIPT).read_text())["files"]) == ["x.tar", "split.json"]


def test_a_killed_process(server: Server, tmp_path: Path) -> None:
    held = threading.Event()
    server.replies["/x.tar"] = [Reply(cut=5000, hold=held), Reply()]
    program = (
        "from advdistill.data.fetch import *\n"
        f"fetch('toys', Origin(folder='toys', needs=('pictures',), remotes=({remote(server)!r},)))"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    part = tmp_path / "data/toys" / WORK / "x.tar.part"
    for _ in range(1000):
        if part.exists() and part.stat().st_size == 5000:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held.set()
    origin = published(remote(server))
    assert place(origin).state == "incomplete"
    assert brought(fetch("toys", origin).place.folder) == FILES
    assert server.ranges() == [None, "bytes=5000-"]


def test_a_process_killed_at_any_moment_between_writes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call that changes a file is once the last one."""

    class Killed(BaseException):
        pass

    server.replies |= {"/x.tar": [Reply()], "/s.json": [Reply(SPLIT)]}
    origin = published(
        remote(server, sha256=SHA),
        remote(server, "/s.json", file="split.json", unpack=False),
        needs=("pictures", "split.json"),
    )
    left, folder = 0, place(origin).folder
    replace, rename, rmtree = Path.replace, Path.rename, shutil.rmtree

    def dying(step: Any) -> Any:
        def call(*args: Any, **how: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return step(*args, **how)

        return call

    for moments in range(40):
        left = moments
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying(replace))
            patch.setattr(Path, "rename", dying(rename))
            patch.setattr(shutil, "rmtree", dying(rmtree))
            try:
                fetch("toys", origin, patience=AT_ONCE)
            except Killed:
                assert place(origin).state != "there"
            else:
                break
        rmtree(folder / WORK / "x.tar.unpacked", ignore_errors=True)
        assert fetch("toys", origin, patience=AT_ONCE).place.state == "there"
        assert brought(folder) == {**FILES, "split.json": SPLIT}
        rmtree(folder)
    assert 8 < moments < 39


@pytest.mark.parametrize(
    "second",
    [Reply(tar_of({"pictures/new": b"n" * 400_000}), tag='"2"'), Reply(ranges=False), Reply(TAR[:600], tag='"1"')],
    ids=["changed", "no ranges", "shorter"],
)
def test_what_cannot_be_continued_begins_anew(server: Server, second: Reply) -> None:
    server.replies["/x.tar"] = [Reply(cut=1000), second]
    if len(second.body) < 1000:
        server.replies["/x.tar"].append(Reply())
    folder = fetch("toys", published(remote(server)), patience=AT_ONCE).place.folder
    assert server.ranges()[:2] == [None, "bytes=1000-"]
    assert brought(folder) == ({"pictures/new": b"n" * 400_000} if second.tag == '"2"' else FILES)


def test_a_file_of_another_length_is_another_one(server: Server) -> None:
    other = tar_of({"pictures/new": b"n" * 400_000})
    server.replies["/x.tar"] = [Reply(cut=1000), Reply(other), Reply(other)]  # a server that changes no tag
    assert set(brought(fetch("toys", published(remote(server)), patience=AT_ONCE).place.folder)) == {"pictures/new"}
    assert server.ranges() == [None, "bytes=1000-", None]


def test_without_tag_and_digest_it_begins_anew(server: Server) -> None:
    server.replies["/x.tar"] = [Reply(cut=1000, tag=""), Reply(tag="")]
    assert brought(fetch("toys", published(remote(server)), patience=AT_ONCE).place.folder) == FILES
    assert server.ranges() == [None, None]


# Mirrors


def test_mirrors_go_on_for_one_another_only_if_a_digest_tells(server: Server, tmp_path: Path) -> None:
    for sha256, wanted in (("", None), (SHA, "bytes=1000-")):
        server.asked.clear()
        server.replies |= {"/a": [Reply(cut=1000), Reply(status=404)], "/b": [Reply(tag='"b"')]}
        done = fetch("toys", published(remote(server, "/a", "/b", sha256=sha256)), patience=AT_ONCE)
        assert server.ranges("/b") == [wanted]
        assert brought(done.place.folder) == FILES
        shutil.rmtree(tmp_path / "data")


def test_what_another_mirror_began_wrongly_is_begun_anew(server: Server) -> None:
    server.replies |= {"/a": [Reply(b"x" * len(TAR), cut=1000), Reply(status=404)], "/b": [Reply()]}
    done = fetch("toys", published(remote(server, "/a", "/b", sha256=SHA)), patience=AT_ONCE)
    assert server.ranges("/b") == ["bytes=1000-", None]
    assert brought(done.place.folder) == FILES


BAD = {
    "404": (Reply(b"", 404), "404 Not Found"),
    "403": (Reply(b"", 403), "403 Forbidden"),
    "500": (Reply(b"", 500), "500 Internal Server Error"),
    "digest": (Reply(TAR[:-1] + b"x"), "its sha256 is "),
    "length": (Reply(TAR + b"x"), f"it is {len(TAR) + 1:,} bytes long, not {len(TAR):,} as published"),
    "web page": (Reply(headers={"Content-Type": "text/html; charset=utf-8"}), "answers with a web page"),
    "compressed": (Reply(headers={"Content-Encoding": "gzip"}), "it compresses the file"),
    "cut": (Reply(cut=0), "cut off after 0 of"),
    "circle": (Reply(b"", 302, {"Location": "/bad"}), "302"),
    "file": (Reply(b"", 302, {"Location": "file:///etc/passwd"}), "302"),
    "nothing": (Reply(b"", 204), "it answers with 204"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_mirror_leads_to_the_next(server: Server, case: str) -> None:
    reply, why = BAD[case]
    server.replies |= {"/bad": [reply], "/good": [Reply()]}
    said: list[str] = []
    origin = published(remote(server, "/bad", "/good", sha256=SHA, size=len(TAR)))
    done = fetch("toys", origin, tell=said.append, patience=AT_ONCE)
    assert brought(done.place.folder) == FILES
    (line,) = said
    assert line.startswith(f"x.tar: {server.url}/bad: ") and why in line


@pytest.mark.parametrize("case", BAD)
def test_only_bad_mirrors_leave_no_trace(server: Server, tmp_path: Path, case: str) -> None:
    reply, why = BAD[case]
    server.replies["/bad"] = [reply]
    origin = published(remote(server, "/bad", "/none", sha256=SHA, size=len(TAR)), steps=("Ask a friend.",))
    said = refused(origin)
    assert why in said and f"{server.url}/none: 404 Not Found" in said
    assert f"put the file at {tmp_path}/data/toys/x.tar yourself\n1. Ask a friend." in said
    assert place(origin).state == "missing" and not (tmp_path / "data").exists()


def test_no_server_and_no_address(server: Server, tmp_path: Path) -> None:
    with contextlib.closing(__import__("socket").create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    said = refused(published(remote(server, f"http://127.0.0.1:{port}/x", "file:///etc/passwd")))
    assert "Connection refused" in said and "file:///etc/passwd: it is no address on the web" in said
    assert not (tmp_path / "data").exists()


def test_nobody_could_tell_whether_it_is_whole(server: Server, tmp_path: Path) -> None:
    server.replies["/x.tar"] = [Reply(sized=False)]
    assert "does not say how long the file is" in refused(published(remote(server)))
    assert not (tmp_path / "data").exists()
    server.replies["/x.tar"] = [Reply(sized=False, cut=1000), Reply(sized=False)]
    done = fetch("toys", published(remote(server, size=len(TAR))), patience=AT_ONCE)
    assert brought(done.place.folder) == FILES and server.ranges()[1:] == [None, "bytes=1000-"]


# Redirects, and the hub


def test_redirects(server: Server) -> None:
    server.replies |= {
        "/x.tar": [Reply(b"", 302, {"Location": "/there"})],
        "/there": [Reply(b"", 307, {"Location": f"{server.url}/at/last"})],
        "/at/last": [Reply(cut=1000), Reply()],
    }
    assert brought(fetch("toys", published(remote(server)), patience=AT_ONCE).place.folder) == FILES
    assert server.ranges("/at/last") == [None, "bytes=1000-"]


def test_the_hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.replies |= {
        "/sets/x.tar": [Reply(b"", 302, {"Location": "/own"})],
        "/own": [Reply(b"", 302, {"Location": f"{elsewhere}/cdn"})],
        "/cdn": [Reply()],
        "/s.json": [Reply(SPLIT)],
    }
    split = remote(server, f"{elsewhere}/s.json", file="split.json", unpack=False)
    origin = published(remote(server, "https://huggingface.co/sets/x.tar"), split)
    fetch("toys", origin, patience=AT_ONCE)
    tokens = {path: headers.get("Authorization") for path, headers in server.asked}
    assert tokens == {"/sets/x.tar": "Bearer secret", "/own": "Bearer secret", "/cdn": None, "/s.json": None}


@pytest.mark.parametrize("value", ["1", "true", "Yes", "ON"])
def test_offline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    origin = published(remote(server), steps=("Ask a friend.",))
    said = refused(origin)
    assert "HF_HUB_OFFLINE is set, and x.tar is not here" in said
    assert f"put the file at {tmp_path}/data/toys/x.tar and repeat" in said
    assert f"it comes from {server.url}/x.tar\n1. Ask a friend." in said
    assert not server.asked and not (tmp_path / "data").exists()
    (tmp_path / "data/toys").mkdir(parents=True)
    (tmp_path / "data/toys/x.tar").write_bytes(TAR)
    assert fetch("toys", origin).brought == ("x.tar",)
    assert brought(tmp_path / "data/toys") == {**FILES, "x.tar": TAR}, "what was brought by hand stays"


# What is there


def test_what_is_there_by_hand_is_not_fetched(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data/toys"
    (folder / "pictures").mkdir(parents=True)
    assert fetch("toys", published(remote(server))).brought == ()
    assert not server.asked and not tree(folder)


def test_only_what_is_missing_is_fetched(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data/toys"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures/mine.jpg").write_bytes(b"mine")
    server.replies |= {"/s.json": [Reply(SPLIT)], "/lists.tar": [Reply(tar_of({"lists/l.txt": b"l"}))]}
    pictures = remote(server, file="pictures.tar.gz")
    lists = remote(server, "/lists.tar", file="lists.tar")
    split = remote(server, "/s.json", file="split.json", unpack=False)
    origin = published(
        pictures, lists, split, needs=("pictures", "lists/l.txt"), wants={"split.json": "another division"}
    )
    assert place(origin).without == {"split.json": "another division"}
    assert fetch("toys", origin).brought == ("lists.tar", "split.json")
    assert [path for path, _ in server.asked] == ["/lists.tar", "/s.json"]
    assert brought(folder) == {"pictures/mine.jpg": b"mine", "lists/l.txt": b"l", "split.json": SPLIT}
    (folder / "split.json").unlink()
    assert fetch("toys", origin).brought == ("split.json",)
    assert list(json.loads((folder / RECEIPT).read_text())["files"]) == ["lists.tar", "split.json"]


def test_nothing_is_written_over(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data/toys"
    (folder / "pictures/b").mkdir(parents=True)
    (folder / "pictures/b/2.jpg").write_bytes(b"mine")
    server.replies["/x.tar"] = [Reply()]
    origin = published(remote(server), needs=("pictures/a", "pictures/b"))
    assert f"{folder}/pictures/b/2.jpg is in the way" in refused(origin)
    assert (folder / "pictures/b/2.jpg").read_bytes() == b"mine" and not (folder / "pictures/a").exists()
    assert place(origin).state == "incomplete"
    (folder / "pictures/b/2.jpg").write_bytes(b"2")
    fetch("toys", origin)
    assert brought(folder) == FILES
    assert server.ranges() == [None], "fetched again"


def test_a_file_brought_by_hand_that_is_another_one(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data/toys"
    folder.mkdir(parents=True)
    (folder / "x.tar").write_bytes(b"mine")
    said = refused(published(remote(server, sha256=SHA)))
    assert f"{folder}/x.tar is there already, and its sha256 is" in said
    assert tree(folder) == {"x.tar": b"mine"}


def test_a_root_that_holds_it_and_one_that_is_none(server: Server, tmp_path: Path) -> None:
    origin = published(remote(server))
    (tmp_path / "mine/toys").mkdir(parents=True)
    assert data_folder(origin, str(tmp_path / "mine")) == tmp_path / "mine/toys"
    (tmp_path / "mine/pictures").mkdir()
    assert data_folder(origin, str(tmp_path / "mine")) == tmp_path / "mine"
    assert data_folder(origin, str(tmp_path / "new")) == tmp_path / "new"
    with pytest.raises(DataError, match="is no path"):
        data_folder(origin, "~nobody-of-this-name/x")
    assert place(published(needs=("a|pictures",)), str(tmp_path / "mine")).state == "there"


# What goes wrong


def test_an_archive_that_is_refused_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.replies["/x.tar"] = [Reply(tar_of({"pictures/1": b"1", "../../evil": b"x"}))]
    origin = published(remote(server))
    assert "x.tar is refused: '../../evil' leads out of the folder" in refused(origin)
    assert not list(tmp_path.iterdir()), "what was left would be refused again"
    server.replies["/x.tar"] = [Reply()]
    assert brought(fetch("toys", origin).place.folder) == FILES


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    work = tmp_path / "data/toys" / WORK
    work.mkdir(parents=True)
    program = (
        f"import fcntl; lock = open({str(work / 'lock')!r}, 'w'); fcntl.lockf(lock, fcntl.LOCK_EX)\n"
        "print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        assert "another process is fetching toys" in refused(published(remote(server)), RunError)
        other.communicate(b"\n")
    server.replies["/x.tar"] = [Reply()]
    assert brought(fetch("toys", published(remote(server))).place.folder) == FILES


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.replies["/x.tar"] = [Reply()]
    origin = published(remote(server))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 4000))  # type: ignore[attr-defined]
        assert f"there is no room for x.tar: {len(TAR):,} bytes are to come" in refused(origin, RunError)
    assert not (tmp_path / "data").exists()

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.name = file, file.name

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, block: bytes) -> None:
            self.file.write(block[:700])
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda path, *how, **more: (Full if path.suffix == ".part" else lambda file: file)(
                opened(path, *how, **more)
            )
        )  # fmt: skip
        assert "cannot write" in (said := refused(origin, RunError)) and "No space left on device" in said
    assert place(origin).state == "incomplete"
    assert brought(fetch("toys", origin).place.folder) == FILES
    assert server.ranges()[-1] == "bytes=700-"


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    assert "cannot write" in refused(published(remote(server)), RunError)


def test_ctrl_c_keeps_what_has_come(server: Server, tmp_path: Path) -> None:
    server.replies["/x.tar"] = [Reply()]
    origin = published(remote(server))

    def interrupt(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("toys", origin, show=interrupt)
    assert place(origin).state == "incomplete"
    assert brought(fetch("toys", origin).place.folder) == FILES
    assert server.ranges()[1] not in (None, "bytes=0-")


@pytest.mark.parametrize("more", [{"gone": "upstream was taken down"}, {"remotes": ()}], ids=["gone", "by hand"])
def test_what_can_be_had_by_hand_only(server: Server, tmp_path: Path, more: dict[str, Any]) -> None:
    origin = published(**{"remotes": (remote(server),), **more}, steps=("Ask a friend.", "Unpack it."))
    said = refused(origin)
    assert said.splitlines() == [
        f"toys cannot be fetched: {more.get('gone', 'it can be had by hand only')}",
        "1. Ask a friend.",
        "2. Unpack it.",
        f"3. It belongs into {tmp_path}/data/toys, which must hold then: pictures",
    ]
    assert not server.asked and not (tmp_path / "data").exists()
    (tmp_path / "data/toys/pictures").mkdir(parents=True)
    assert fetch("toys", origin).brought == ()


def test_what_is_to_be_brought_by_hand_beside(server: Server, tmp_path: Path) -> None:
    server.replies["/x.tar"] = [Reply()]
    origin = published(remote(server), needs=("pictures", "secret.txt"), steps=("Ask for secret.txt.",))
    for _ in range(2):
        assert "no file that can be fetched holds secret.txt\n1. Ask for secret.txt." in refused(origin)
    assert len(server.asked) == 1
    assert place(origin).state == "incomplete" and not place(origin).resume
    (tmp_path / "data/toys/secret.txt").touch()
    shutil.rmtree(tmp_path / "data/toys/pictures")
    assert fetch("toys", origin).brought == ("x.tar",)
    assert len(server.asked) == 2
    assert fetch("toys", origin).brought == ()
    assert fetching.offline() is False
