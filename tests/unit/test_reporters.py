"""Reporters and tables of results.

Guarantees:
- `jsonl` writes valid JSON only, whatever the numbers; a resumed run's file tells each step once, a torn line goes.
- `console` talks on stderr alone; off a terminal whole lines, not one per step; on a terminal live, `NO_COLOR` obeyed.
- `pictures` writes both PNGs for any number of samples and models, for a stopped run too, with a resumed run's past.
- `tensorboard` without its package is a usage error that says what to install; with it, scalars go where they belong.
- Every reporter bears every event, events it does not know, and being closed twice.
- Tables hold every count with its interval, mark stored rows, and lose nothing on a narrow terminal.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from advdistill_reporters import configs
from advdistill_reporters.console import ConsoleReporter
from advdistill_reporters.jsonl import JsonlReporter, read_metrics
from advdistill_reporters.pictures import PicturesReporter, curves_figure, examples_figure
from advdistill_reporters.tensorboard import TensorBoardReporter
from PIL import Image
from rich.console import Console

from advdistill import (
    Clock,
    Count,
    Event,
    Examples,
    Measured,
    Measuring,
    Probed,
    Results,
    RunFinished,
    RunStarted,
    RunStopped,
    Saved,
    StepDone,
    UsageError,
    Warned,
)
from advdistill.cli.tables import results_table, results_text

STATEMENTS = {
    "clean": {"threat": None},
    "pgd-20": {"threat": {"norm": "linf", "eps": 8 / 255}},
    "pgd-l2": {"threat": {"norm": "l2", "eps": 0.5}},
}


@dataclasses.dataclass(frozen=True)
class Unheard(Event):
    """An event that a plugin of tomorrow might send."""

    thing: object


def row(subject: str, *hits: int, stored: bool = False) -> Results:
    counts = {name: Count(hit, 400) for name, hit in zip(STATEMENTS, hits, strict=False)}
    return Results(subject, counts, {name: STATEMENTS[name] for name in counts}, stored=stored)


ROWS = (
    row("undefended", 394, 62),
    row("adversarial CE, same steps", 380, 290, stored=True),
    row("student", 390, 315, 300),
)


def examples(count: int = 3, subjects: tuple[str, ...] = ("undefended", "student")) -> Examples:
    clean = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    said = {subject: [(("zero", 0.99), ("a very long class name, of $5", 0.4))] * count for subject in subjects}
    adversarial = {subject: (clean + 8 / 255).clamp(0, 1) for subject in subjects}
    return Examples(clean, adversarial, ("zero", "zero", "one")[:count], said, 8 / 255, "linf")


def step_done(step: int, steps: int = 40, loss: float = 0.5) -> StepDone:
    losses = {"loss": loss, "robust": loss / 2, "clean": loss / 2}
    return StepDone(Clock(step, steps, step // 10), losses, {"student": 1e-3}, 300.0, float(steps - step))


def story(folder: Path, first: int = 0, last: int = 40) -> list[Event]:
    told: list[Event] = [RunStarted("tale", folder, 40, first, {"method": "apd", "data": "digits"})]
    told += [Warned("the attack is weak"), Measuring("undefended", "clean", 0, 400), Measured("before", ROWS[0])]
    told += [Probed(Clock(0, 40, 0), Count(98, 100), Count(15, 100))] if not first else []
    for step in range(first + 1, last + 1):
        told.append(step_done(step))
        if step % 10 == 0:
            told.append(Probed(Clock(step, 40, 0), Count(97, 100), Count(15 + step, 100)))
            told.append(Saved(folder / "last.safetensors", Clock(step, 40, 0)))
    return told


def ending(folder: Path) -> list[Event]:
    return [Measured("after", ROWS[2]), examples(), RunFinished(Clock(40, 40, 4), ROWS, folder, 92.3)]


def tell(reporter, events) -> None:
    for event in events:
        reporter.handle(event)
    reporter.close()


def lines(folder: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


class TestJsonl:
    def test_every_event_is_one_line(self, tmp_path):
        tell(JsonlReporter(None), [*story(tmp_path), *ending(tmp_path)])
        told = lines(tmp_path)
        assert [entry["event"] for entry in told[:4]] == ["run_started", "warned", "measured", "probed"]
        assert sum(entry["event"] == "step_done" for entry in told) == 40
        step = next(entry for entry in told if entry["event"] == "step_done")
        assert (
            step["step"] == 1 and step["steps"] == 40 and step["losses"] == {"loss": 0.5, "robust": 0.25, "clean": 0.25}
        )
        assert told[3]["clean"] == {"hits": 98, "total": 100} and told[3]["step"] == 0
        assert told[-1]["event"] == "run_finished"
        assert told[-1]["results"][1]["protocols"]["pgd-20"]["hits"] == 290 and told[-1]["results"][1]["stored"]
        assert not {"measuring", "examples"} & {entry["event"] for entry in told}

    def test_lines_are_there_at_once(self, tmp_path):
        reporter = JsonlReporter(None)
        for event in story(tmp_path, last=3):
            reporter.handle(event)
        assert lines(tmp_path)[-1]["step"] == 3
        reporter.close()

    def test_not_finite_is_null_and_told(self, tmp_path):
        bad = dataclasses.replace(step_done(1, loss=math.inf), lr={"student": math.nan})
        tell(JsonlReporter(None), [*story(tmp_path, last=0), bad])
        entry = lines(tmp_path)[-1]
        assert entry["losses"]["loss"] is None and entry["lr"]["student"] is None
        assert entry["not_finite"] == ["losses.loss: inf", "losses.robust: inf", "losses.clean: inf", "lr.student: nan"]

    def test_resume_tells_each_step_once(self, tmp_path):
        tell(JsonlReporter(None), story(tmp_path, last=27))
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"event": "step_done", "step": 28, "los')
        tell(JsonlReporter(None), [*story(tmp_path, first=20), *ending(tmp_path)])
        told = lines(tmp_path)
        assert [entry["step"] for entry in told if entry["event"] == "step_done"] == list(range(1, 41))
        assert [entry["step"] for entry in told if entry["event"] == "probed"] == [0, 10, 20, 30, 40]
        assert not list(tmp_path.glob("*.tmp"))

    def test_a_new_run_begins_a_new_file(self, tmp_path):
        tell(JsonlReporter(None), story(tmp_path, last=5))
        tell(JsonlReporter(None), story(tmp_path, last=2))
        assert [entry["step"] for entry in lines(tmp_path) if entry["event"] == "step_done"] == [1, 2]

    def test_disk_errors_are_not_swallowed(self, tmp_path):
        with pytest.raises(OSError):
            JsonlReporter(None).handle(RunStarted("tale", tmp_path / "gone", 10, 0, {}))

    def test_history_without_a_file(self, tmp_path):
        assert read_metrics(tmp_path, 10) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch, columns: int = 100) -> Terminal:
    """What stands in for stderr; not a fixture, since pytest swaps stderr after these."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return screen


class TestConsole:
    def test_plain_lines_on_stderr(self, tmp_path, capsys):
        tell(ConsoleReporter(configs.Console()), [*story(tmp_path), *ending(tmp_path)])
        out, err = capsys.readouterr()
        assert out == "" and "\x1b" not in err
        assert "tale  " in err and "method  apd" in err and "warning: the attack is weak" in err
        assert "undefended  clean 98.5 %  pgd-20 15.5 %" in err
        steps = [line for line in err.splitlines() if line.startswith("step ")]
        assert [re.match(r"step (\d+)/40", line)[1] for line in steps] == [str(k) for k in range(4, 41, 4)]
        assert "step 4/40  300 img/s  00:36 left  loss 0.5  robust 0.25  clean 0.25" in steps[0]
        assert "probe at step 40  clean 97.0 % (-1.0)  robust 55.0 % (+40.0)  since step 0" in err
        assert f"done in 01:32; all of it is in {tmp_path}" in err

    def test_a_slow_run_is_not_silent(self, tmp_path, capsys, monkeypatch):
        now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        reporter = ConsoleReporter(configs.Console())
        reporter.handle(RunStarted("tale", tmp_path, 10_000, 0, {}))
        for step in range(1, 31):
            now += 1.0
            reporter.handle(dataclasses.replace(step_done(step, 10_000), seconds_left=60.0))
        steps = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
        assert [re.match(r"step (\d+)/", line)[1] for line in steps] == ["5", "10", "15", "20", "25", "30"]

    def test_resume_is_told(self, tmp_path, capsys):
        tell(ConsoleReporter(configs.Console()), story(tmp_path, first=20, last=21))
        assert "taken up after step 20 of 40" in capsys.readouterr().err

    def test_live_on_a_terminal(self, tmp_path, monkeypatch, capsys):
        screen = terminal(monkeypatch)
        reporter = ConsoleReporter(configs.Console())
        for event in story(tmp_path, last=12):
            reporter.handle(event)
        print("a result")
        reporter.handle(RunStopped(Clock(12, 40, 1), "asked to stop", "advdistill train --resume x"))
        written = screen.getvalue()
        assert "step 12/40" in written and "━" in written and "300 img/s" in written and "loss 0.5" in written
        assert "probe at step 10" in written and "\x1b[32m" in written
        assert written.rstrip().endswith("\x1b[?25h"), "the cursor must come back"
        assert capsys.readouterr().out == "a result\n"
        reporter.close()

    def test_no_color(self, tmp_path, monkeypatch):
        screen = terminal(monkeypatch)
        monkeypatch.setenv("NO_COLOR", "1")
        tell(ConsoleReporter(configs.Console()), story(tmp_path, last=12))
        assert "step 12/40" in screen.getvalue() and not re.search(r"\x1b\[[\d;]*3[0-8]\b", screen.getvalue())

    @pytest.mark.parametrize(("term", "plain"), [("dumb", False), ("xterm", True)])
    def test_plain_on_demand_and_on_dumb_terminals(self, tmp_path, monkeypatch, term, plain):
        screen = terminal(monkeypatch)
        monkeypatch.setenv("TERM", term)
        tell(ConsoleReporter(configs.Console(plain=plain)), story(tmp_path, last=12))
        assert "step 12/40" in screen.getvalue() and "\x1b[?25l" not in screen.getvalue()

    def test_narrow_terminal(self, tmp_path, monkeypatch):
        screen = terminal(monkeypatch, columns=24)
        tell(ConsoleReporter(configs.Console()), [*story(tmp_path), *ending(tmp_path)])
        assert "done in" in screen.getvalue() and "step 40/40" in screen.getvalue()


class TestPictures:
    def test_files(self, tmp_path):
        tell(PicturesReporter(configs.Pictures(dpi=50)), [*story(tmp_path), *ending(tmp_path)])
        for name in ("examples.png", "curves.png"):
            with Image.open(tmp_path / name) as picture:
                picture.load()
                assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(1 << 24)) > 50
        assert not list(tmp_path.glob("*.tmp"))

    def test_a_stopped_run_has_curves(self, tmp_path):
        stop = RunStopped(Clock(7, 40, 0), "not finite: loss", None)
        tell(PicturesReporter(configs.Pictures(dpi=50)), [*story(tmp_path, last=7), step_done(8, loss=math.nan), stop])
        assert (tmp_path / "curves.png").exists()

    def test_a_run_stopped_before_its_first_step_has_none(self, tmp_path):
        stop = RunStopped(Clock(0, 40, 0), "asked to stop", None)
        tell(PicturesReporter(configs.Pictures()), [RunStarted("tale", tmp_path, 40, 0, {}), stop])
        assert not list(tmp_path.iterdir())

    def test_a_resumed_run_shows_its_past(self, tmp_path, monkeypatch):
        tell(JsonlReporter(None), [*story(tmp_path, last=27), step_done(28, loss=math.nan)])
        shown = {}

        def spy(losses, probes, rows, title):
            shown.update(losses=losses, probes=probes)
            return curves_figure(losses, probes, rows, title)

        monkeypatch.setattr("advdistill_reporters.pictures.curves_figure", spy)
        tell(PicturesReporter(configs.Pictures(dpi=50)), [*story(tmp_path, first=20), *ending(tmp_path)])
        assert list(shown["losses"]) == list(range(1, 41)) and list(shown["probes"]) == [0, 10, 20, 30, 40]
        assert shown["probes"][20]["robust"] == Count(35, 100)

    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("subjects", [("student",), ("undefended", "student", "teacher")])
    def test_what_the_examples_say(self, count, subjects):
        figure = examples_figure(examples(count, subjects), "tale")
        said = [text.get_text() for text in figure.texts]
        assert said.count("student says") == 2 and "perturbation\n× 16" in said
        right = sum(name == "zero" for name in ("zero", "zero", "one")[:count])
        assert said.count("zero 99 % ✓") == right * len(subjects)
        assert said.count("zero 99 % ✗") == (count - right) * len(subjects)
        assert said.count("a very long… 40 % ✗") == count * len(subjects)
        assert len(figure.axes) == count * (1 + 2 * len(subjects))

    def test_bars_show_every_count(self):
        figure = curves_figure({1: {"loss": 1.0}}, {}, ROWS, "tale")
        bars = [patch.get_width() for patch in figure.axes[2].patches]
        assert sorted(bars) == sorted(count.share for row in ROWS for count in row.counts.values())


class TestTensorBoard:
    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(UsageError, match="tensorboard") as caught:
            TensorBoardReporter(None)
        assert caught.value.hint == 'pip install "advdistill[tensorboard]"'

    @pytest.fixture
    def written(self, monkeypatch):
        calls: list[tuple] = []

        class Writer:
            def __init__(self, folder, purge_step):
                calls.append(("open", folder.name, purge_step))

            def add_scalar(self, name, value, step):
                calls.append((name, round(value, 3), step))

            def add_images(self, name, images, step):
                calls.append((name, tuple(images.shape), step))

            def flush(self):
                pass

            def close(self):
                calls.append(("close",))

        module = types.ModuleType("torch.utils.tensorboard")
        module.SummaryWriter = Writer
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
        return calls

    def test_scalars_and_images(self, tmp_path, written):
        tell(TensorBoardReporter(None), [*story(tmp_path, first=20), *ending(tmp_path)])
        assert written[0] == ("open", "tensorboard", 21) and written[-1] == ("close",)
        assert ("train/robust", 0.25, 21) in written and ("lr/student", 0.001, 40) in written
        assert ("probe/robust", 0.55, 40) in written and ("undefended/pgd-20", 0.155, 20) in written
        assert ("examples/student", (3, 3, 8, 8), 40) in written


def test_every_reporter_bears_everything(tmp_path, monkeypatch):
    writer = types.SimpleNamespace(SummaryWriter=lambda folder, purge_step: types.SimpleNamespace(
        add_scalar=lambda *a: None, add_images=lambda *a: None, flush=lambda: None, close=lambda: None))  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    reporters = [
        ConsoleReporter(configs.Console()),
        JsonlReporter(None),
        PicturesReporter(configs.Pictures(dpi=50)),
        TensorBoardReporter(None),
    ]
    probe_without_attack = Probed(Clock(5, 40, 0), Count(1, 2), None)
    for reporter in reporters:
        reporter.handle(Unheard({"before": [1, object()]}))
        for event in [*story(tmp_path), probe_without_attack, Unheard(torch.ones(2)), *ending(tmp_path)]:
            reporter.handle(event)
        reporter.close()
        reporter.close()
    assert {"metrics.jsonl", "examples.png", "curves.png"} <= {path.name for path in tmp_path.iterdir()}


class TestTables:
    def test_plain_text(self):
        assert results_text(ROWS) == (
            "accuracy in % [95 % Wilson interval]\n"
            "model                                    clean             pgd-20            pgd-l2\n"
            "                                         n=400  linf 8/255, n=400     l2 0.5, n=400\n"
            "undefended                    98.5 [96.8–99.3]   15.5 [12.3–19.4]                 –\n"
            "adversarial CE, same steps *  95.0 [92.4–96.7]   72.5 [67.9–76.6]                 –\n"
            "student                       97.5 [95.5–98.6]   78.8 [74.5–82.5]  75.0 [70.5–79.0]\n"
            "* stored: measured when the model was made, under the same statement\n"
        )

    @pytest.mark.parametrize("width", [40, 60, 80, 120])
    def test_rich_at_any_width(self, width):
        screen = io.StringIO()
        Console(file=screen, width=width).print(results_table(ROWS))
        text = screen.getvalue()
        assert max(map(len, text.splitlines())) <= width
        for number in ("98.5", "15.5", "72.5", "78.8", "75.0"):
            assert number in text
        assert "stored" in text

    def test_no_footnote_without_need_and_differing_counts(self):
        other = Results("other", {"clean": Count(9, 10)}, {"clean": STATEMENTS["clean"]})
        text = results_text([ROWS[0], other])
        assert "stored" not in text and "n varies" in text and "90.0 [59.6–98.2]" in text
