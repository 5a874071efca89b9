"""Scalars and example images for TensorBoard."""

from __future__ import annotations

from typing import Any

from advdistill import Count, Event, Examples, Measured, Probed, Reporter, RunStarted, StepDone, Symptom, UsageError


class TensorBoardReporter(Reporter):
    """Writes event files to `tensorboard/` in the run's folder; steps after a resume replace what was there.

    Raises:
        UsageError: the package `tensorboard` is not installed.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "the reporter 'tensorboard' needs the package tensorboard", 'pip install "advdistill[tensorboard]"'
            ) from error
        self._writer_class = SummaryWriter
        self._writer: Any = None
        self._step = 0

    def handle(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.close()
            self._step = event.first
            # Without a purge step, and with one of 0, the writer keeps what an earlier process wrote.
            self._writer = self._writer_class(event.dir / "tensorboard", purge_step=event.first + 1)
        if self._writer is None:
            return
        if isinstance(event, StepDone):
            self._step = event.clock.step
            self._scalars("train", event.losses)
            self._scalars("lr", event.lr)
            self._scalars("speed", {"images_per_second": event.images_per_second})
        elif isinstance(event, Probed):
            self._step = event.clock.step
            self._counts("probe", {"clean": event.clean, "robust": event.robust})
            self._scalars("watched", event.watched)
        elif isinstance(event, Symptom):
            self._writer.add_text(f"symptoms/{event.name}", f"{event.message}; {event.advice}", event.clock.step)
        elif isinstance(event, Measured):
            self._counts(event.results.subject, event.results.counts)
        elif isinstance(event, Examples):
            self._writer.add_images("examples/clean", event.clean, self._step)
            for subject, images in event.adversarial.items():
                self._writer.add_images(f"examples/{subject}", images, self._step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalars(self, group: str, values: Any) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, self._step)

    def _counts(self, group: str, counts: Any) -> None:
        self._scalars(group, {name: count.share for name, count in counts.items() if isinstance(count, Count)})
