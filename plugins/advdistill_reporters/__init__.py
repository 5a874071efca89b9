"""Those who watch a run: the terminal, a log file, pictures, TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable

from advdistill import ReporterSpec, hookimpl


@hookimpl
def advdistill_reporters() -> Iterable[ReporterSpec]:
    yield ReporterSpec(
        name="console",
        target="advdistill_reporters.console:ConsoleReporter",
        config="advdistill_reporters.configs:Console",
        summary="Live progress on a terminal, plain lines elsewhere; on stderr",
    )
    yield ReporterSpec(
        name="jsonl",
        target="advdistill_reporters.jsonl:JsonlReporter",
        summary="metrics.jsonl in the run's folder: one JSON object an event",
    )
    yield ReporterSpec(
        name="pictures",
        target="advdistill_reporters.pictures:PicturesReporter",
        config="advdistill_reporters.configs:Pictures",
        summary="examples.png and curves.png in the run's folder",
    )
    yield ReporterSpec(
        name="tensorboard",
        target="advdistill_reporters.tensorboard:TensorBoardReporter",
        summary='Event files in the run\'s folder; needs pip install "advdistill[tensorboard]"',
    )
