"""Adversarial images on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from advdistill.engine.data import Batch
from advdistill.engine.judge import quantise
from advdistill.engine.subject import Subject
from advdistill.errors import RunError


class ImageFolder:
    """Writes what decided each sample: `DIR/PROTOCOL/INDEX-LABEL.png`, and one line a sample in `DIR/PROTOCOL.jsonl`.

    Args:
        folder: where; made if it is not there. subject: whose images they are.

    Raises:
        RunError: it cannot be written, or holds something already.
    """

    def __init__(self, folder: Path, subject: Subject) -> None:
        self._folder, self._subject = folder, subject
        self._attacks = {protocol.name: protocol for protocol in subject.protocols if protocol.attack}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise RunError(f"{folder} is not empty", "choose another folder for --save-images")
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror}", "choose another --save-images") from error

    def keep(self, protocol: str, batch: Batch, images: Tensor, right: Tensor) -> None:
        """See `advdistill.engine.evaluate.Found`."""
        if protocol not in self._attacks:
            return
        participant = self._subject.participant
        names, split = participant.classes.names, self._subject.splits(self._attacks[protocol].split)
        with participant.deployed(), torch.no_grad():
            said = participant.logits(images).argmax(1).tolist()
        stored = quantise(images, batch.images).cpu()
        head = _plain(protocol)
        try:
            (self._folder / head).mkdir(exist_ok=True)
            with (self._folder / f"{head}.jsonl").open("a", encoding="utf-8") as lines:
                for i, sample in enumerate(batch.samples.tolist()):
                    label = names[int(batch.labels[i])]
                    file = f"{head}/{sample:06d}-{_plain(label)}.png"
                    Image.fromarray(stored[i].permute(1, 2, 0).numpy()).save(self._folder / file)
                    facts = {"file": file, "id": split.ids[sample], "label": label, "said": names[said[i]],
                             "withstood": bool(right[i])}  # fmt: skip
                    lines.write(json.dumps(facts, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunError(f"cannot write images to {self._folder}: {error}", "choose another --save-images") from error


def _plain(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.=-]+", "_", name)
