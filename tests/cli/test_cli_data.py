"""`advdistill data`.

Guarantees:
- `list` has a line for every data set, published, built in or one's own, says what is missing and what a fetch has left
  over, and survives one that is broken; `where` names the folder alone on stdout; neither imports torch;
- `fetch` ends with the folder on stdout; a second one, a cut one, one that is interrupted, one by hand, one offline and
  one of something else say so, with the right exit code, and `list`, `where` and `verify` know what became of it;
- `verify` takes a data set with settings or a recipe, prints a line for each finding and ends with 5 if there is one;
- `preview` writes a picture and prints where;
- what is mistyped is answered with a suggestion, without traceback; `--json` says all of it.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_parts import Cli
from PIL import Image

from advdistill.cli.options import registry_with
from advdistill.data import fetch as fetching
from advdistill.data.fetch import Patience

PLUGIN = """
from advdistill import ClassSet, Config, Dataset, DatasetSpec, Origin, Remote, hookimpl
from advdistill.testing import ToyDataset

class Settings(Config):
    root: str = ""
    "Its folder."

class Own(Config):
    root: str
    "Its folder."

TOYS = Origin(
    folder="toys", needs=("pictures", "list.txt|list.json"), wants={"split.json": "the usual division"}, images=180,
    bytes=2_500_000, licence="CC0", page="https://example.org/toys", steps=("Ask a friend.",),
    remotes=(Remote(file="toys.tar", urls=("URL/toys.tar",)),),
)
GONE = Origin(folder="lost", needs=("pictures",), gone="its server was switched off", steps=("Ask a friend.",))

@hookimpl
def advdistill_datasets():
    yield DatasetSpec(name="toys", target=ToyDataset, config=Settings, origin=TOYS, summary="Toys")
    yield DatasetSpec(name="lost", target=ToyDataset, config=Settings, origin=GONE, summary="Lost")
    yield DatasetSpec(name="mine", target=ToyDataset, config=Own, summary="Of my own")
    yield DatasetSpec(name="bad", target=ToyDataset, config=Settings, origin="no_such_module:ORIGIN", summary="Broken")
"""


@pytest.fixture
def toys(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plugin, in the current folder, and a server that has `toys.tar`; its folder."""
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADVDISTILL_DATA", "sets")
    monkeypatch.setattr(fetching, "fetch", functools.partial(fetching.fetch, patience=Patience(1, 0, 5)))
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "toys.tar", "w") as tar:
        for name in ("pictures/1.png", "list.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    Path("toys.py").write_text(PLUGIN.replace("URL", f"http://127.0.0.1:{server.server_port}"))
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


WITH = ("--plugin", "toys.py")


def listed(cli: Cli) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(cli("data", "list", "--json", *WITH).out)}


def test_list(cli: Cli, toys: Path, tmp_path: Path) -> None:
    said = cli("data", "list", *WITH)
    assert said.code == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in said.out.splitlines()}
    assert lines["NAME"] == "NAME STATE IMAGES SIZE LICENCE FOLDER, OR WHAT IT IS"
    assert lines["toys"] == f"toys missing 180 2.5 MB CC0 {tmp_path}/sets/toys"
    assert lines["lost"] == f"lost missing (by hand) {tmp_path}/sets/lost"
    assert lines["mine"] == "mine your own Of my own"
    assert lines["digits"].startswith("digits built in 1,797 real")
    assert "bad is broken: dataset 'bad' of plugin " in said.out and "no_such_module" in said.out
    assert "advdistill data fetch NAME" in said.err
    rows = listed(cli)
    assert set(rows) == {entry.spec.name for entry in registry_with(["toys.py"]).entries("dataset")}
    assert rows["toys"]["missing"] == ["pictures", "list.txt|list.json"]
    assert (rows["toys"]["fetch"], rows["lost"]["fetch"], rows["mine"]["state"]) == ("fetch", "by hand", "your own")


def test_what_is_there_in_part(cli: Cli, toys: Path) -> None:
    Path("sets/toys/pictures").mkdir(parents=True)
    out = cli("data", "list", *WITH).out
    assert "toys lacks list.txt|list.json\n" in out and "toys has no split.json: the usual division\n" in out
    said = cli("data", "where", "toys", *WITH)
    assert said.err == "toys is incomplete; it lacks list.txt|list.json\n"
    Path("sets/toys/list.json").touch()
    assert listed(cli)["toys"]["state"] == "there"


def test_where(cli: Cli, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = cli("data", "where")
    assert (said.code, said.out) == (0, f"{tmp_path}/sets\n")
    assert said.err == "as ADVDISTILL_DATA says; it does not exist yet\n"
    said = cli("data", "where", "toys", *WITH)
    assert (said.code, said.out, said.err) == (0, f"{tmp_path}/sets/toys\n", "toys is missing\n")
    assert json.loads(cli("data", "where", "toys", "--json", *WITH).out) == listed(cli)["toys"]
    monkeypatch.delenv("ADVDISTILL_DATA")
    assert json.loads(cli("data", "where", "--json").out) == {
        "folder": f"{tmp_path}/data",
        "from": "default",
        "exists": False,
    }


@pytest.mark.parametrize("words", [["where", "toyz"], ["fetch", "toyz"]], ids=" ".join)
def test_a_name_that_there_is_not(cli: Cli, toys: Path, words: list[str]) -> None:
    said = cli("data", *words, *WITH)
    assert (said.code, said.out) == (3, "")
    assert "there is no dataset named 'toyz'; did you mean 'toys'?" in said.err


@pytest.mark.parametrize("command", ["where", "fetch"])
def test_what_was_not_published(cli: Cli, toys: Path, command: str) -> None:
    said = cli("data", command, "mine", *WITH)
    assert said.code == 2 and "mine is data of your own" in said.err and "plugins show dataset:mine" in said.err
    said = cli("data", command, "digits")
    assert said.code == 2 and "digits is built in" in said.err


def test_fetch(cli: Cli, toys: Path, tmp_path: Path) -> None:
    said = cli("data", "fetch", "toys", *WITH)
    assert (said.code, said.out) == (0, f"{tmp_path}/sets/toys\n")
    assert "fetching toys.tar: 10.2 kB of 10.2 kB\n" in said.err and "unpacking toys.tar" in said.err
    assert "it has no split.json: the usual division" in said.err
    assert Path("sets/toys/pictures/1.png").is_file() and not Path("sets/toys/toys.tar").exists()
    again = cli("data", "fetch", "toys", *WITH)
    assert (again.code, again.out) == (0, f"{tmp_path}/sets/toys\n")
    assert again.err.startswith("toys is there already\n")
    assert listed(cli)["toys"]["state"] == "there"
    elsewhere = cli("data", "fetch", "toys", "--root", "else where", "--keep", *WITH)
    assert elsewhere.out == f"{tmp_path}/else where/toys.tar\n".replace("/toys.tar", "")
    assert Path("else where/toys.tar").is_file()


def test_fetches_that_fail(cli: Cli, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toys / "toys.tar").rename(toys / "away")
    said = cli("data", "fetch", "toys", *WITH)
    assert (said.code, said.out) == (5, "")
    assert "404 File not found" in said.err and "1. Ask a friend.\n" in said.err and "Traceback" not in said.err
    said = cli("data", "fetch", "lost", *WITH)
    assert said.code == 5 and "lost cannot be fetched: its server was switched off\n1. Ask a friend.\n" in said.err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = cli("data", "fetch", "toys", *WITH)
    assert said.code == 5 and "HF_HUB_OFFLINE is set" in said.err
    assert not Path("sets").exists()


def test_an_interrupted_fetch(cli: Cli, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "unpack", interrupted)
        said = cli("data", "fetch", "toys", "--root", "my toys", *WITH)
    assert (said.code, said.out) == (130, "")
    assert said.err.endswith("stopped; what has come is kept, and the same command goes on\n")
    monkeypatch.setenv("ADVDISTILL_DATA", "nowhere")
    Path("nowhere").mkdir()
    Path("my toys").rename("nowhere/toys")
    out = cli("data", "list", *WITH).out
    assert "toys: a fetch was not finished; go on with: advdistill data fetch toys --root 'my toys'" in out
    assert cli("data", "fetch", "toys", *WITH).code == 0


@pytest.fixture
def tree(cli: Cli) -> str:
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            for index in range(3):
                path = Path("tree", part, name, f"{index}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 8), (len(part) * 20, number * 99, index * 40)).save(path)
    return "root=tree"


def test_verify(cli: Cli, tree: str) -> None:
    said = cli("data", "verify", "folder", tree, "size=8", "val_share=0")
    assert (said.code, said.err) == (0, "")
    header, train, test, *_, last = said.out.splitlines()
    assert header.split() == ["SPLIT", "IMAGES", "CLASSES", "SMALLEST", "CLASS", "LARGEST", "CLASS"]
    assert train.split() == ["train", "6", "2", "3", "cat", "3", "cat"] and test.split()[0] == "test"
    assert last == "nothing is wrong"
    Path("tree/train/cat/0.png").write_bytes(b"junk")
    Path("tree/test/dog/0.png").write_bytes(Path("tree/train/dog/1.png").read_bytes())
    said = cli("data", "verify", "folder", tree, "size=8", "val_share=0")
    assert said.code == 5 and said.err == "error: folder: 2 things are wrong\n"
    assert said.out.splitlines()[-2:] == [
        "unreadable: tree/train/cat/0.png is not an image of a known format (train)",
        "twice: train/dog/1.png (train) and test/dog/0.png (test)",
    ]
    told = cli("data", "verify", "folder", tree, "size=8", "val_share=0", "--json")
    facts = json.loads(told.out)
    assert told.code == 5
    assert facts["splits"]["train"] == {"images": 6, "classes": 2, "smallest": ["cat", 3], "largest": ["cat", 3]}
    assert facts["unreadable"][0]["name"] == "train/cat/0.png" and len(facts["findings"]) == 2
    assert facts["twins"] == [
        [
            {"split": "train", "name": "train/dog/1.png", "class": "dog"},
            {"split": "test", "name": "test/dog/0.png", "class": "dog"},
        ]
    ]


def test_verify_a_recipe(cli: Cli, tree: str) -> None:
    said = cli("data", "verify", "quickstart", "data={use: folder, root: tree, size: 8}")
    assert said.code == 0 and "train" in said.out
    Path("toys.py").write_text(PLUGIN)
    said = cli("data", "verify", "toys", *WITH)
    assert said.code == 0 and "60" in said.out


def test_verify_an_unfinished_one(cli: Cli, toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "unpack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli("data", "fetch", "toys", *WITH).code == 130
    said = cli("data", "verify", "toys", *WITH)
    assert said.code == 5
    assert "incomplete: a fetch was not finished; go on with: advdistill data fetch toys\n" in said.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["verify", "foldr"], 3, "there is no dataset named 'foldr'; did you mean 'folder'?"),
        (["verify", "no.yaml"], 3, "there is no recipe 'no.yaml'"),
        (["verify", "folder"], 3, "root"),
        (["verify", "folder", "tree"], 2, "'tree' is not a setting"),
        (["verify", "folder", "root=tree", "sise=3"], 3, "did you mean 'size'?"),
        (["verify", "folder", "root=nowhere"], 5, "there is no folder nowhere"),
        (["preview", "digits", "--split", "tset"], 2, "there is no split 'tset'; did you mean 'test'?"),
        (["preview", "digits", "--out", "x.txt"], 2, "pictures are written as"),
        (["preview", "digits", "--out", "no/x.png"], 2, "there is no folder no"),
        (["preview", "digits", "--count", "0"], 2, "Invalid value for '--count'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_mistyped(cli: Cli, tree: str, words: list[str], code: int, message: str) -> None:
    said = cli("data", *words)
    assert (said.code, said.out) == (code, "")
    assert message in said.err and "Traceback" not in said.err and "internal error" not in said.err


def test_preview(cli: Cli, tree: str) -> None:
    said = cli("data", "preview", "folder", tree, "--split", "train", "--count", "4")
    assert (said.code, said.out, said.err) == (0, "folder-train.png\n", "")
    with Image.open("folder-train.png") as image:
        assert image.width > 600
    assert cli("data", "preview", "quickstart", "--count", "2", "--out", "s.png").out == "s.png\n"


def test_list_where_and_fetch_import_no_torch(cli: Cli, toys: Path) -> None:
    program = (
        "import sys, atexit\n"
        "from advdistill.cli.main import main\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr))\n"
        "main()"
    )
    for words in (["list"], ["where", "imagenet"], ["fetch", "folder"]):
        done = subprocess.run([sys.executable, "-c", program, "data", *words], capture_output=True, text=True)
        assert done.stderr.endswith("False False\n"), done.stderr
