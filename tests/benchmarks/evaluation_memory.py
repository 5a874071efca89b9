"""Does an evaluation need more memory for more samples?

    python tests/benchmarks/evaluation_memory.py [--samples 128] [--times 8] [--batch 16] [--side 224]

Images of 224 x 224 pixels are made when they are asked for, as a folder of files would decode them; a tiny model is
attacked by PGD with two steps, through the engine, into the folder that `evaluate` keeps its finished packs and images
in. The same with `--times` as many samples, and then once more over a folder in which everything is finished, as after
a kill at the very end; each in a process of its own, whose peak resident memory is read. Passes where a further sample
costs less than 5 % of the bytes of its image (float32).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ALLOWED = 0.05


def main() -> None:
    """Measure in four processes, print what a sample costs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--samples", type=int, default=128)
    options.add_argument("--times", type=int, default=8)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--side", type=int, default=224)
    options.add_argument("--child", nargs=2, metavar=("SAMPLES", "DIR"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        print(json.dumps(child(int(given.child[0]), Path(given.child[1]), given.batch, given.side)))
        return
    few, many = given.samples, given.samples * given.times
    image = 3 * given.side**2 * 4
    peaks: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (few, many):
            for how in ("fresh", "finished"):
                options_ = ["--batch", str(given.batch), "--side", str(given.side)]
                words = [sys.executable, __file__, *options_, "--child", str(count), f"{folder}/{count}"]
                said = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
                peaks[how, count] = said["peak"]
                print(
                    f"{how:9} {count:6} samples: peak {said['peak'] / 2**20:7.0f} MiB, {said['seconds']:.1f} s, "
                    f"{said['attacked']} attacked, {said['right']} right"
                )
    good = True
    for how in ("fresh", "finished"):
        slope = (peaks[how, many] - peaks[how, few]) / (many - few)
        good &= slope < ALLOWED * image
        print(
            f"{how:9} a further sample costs {slope / 1024:.1f} KiB, {100 * slope / image:.1f} % of its image; "
            f"50,000 would cost {slope * 50_000 / 2**30:.2f} GiB"
        )
    print("passes" if good else "FAILS")
    sys.exit(not good)


def child(count: int, folder: Path, batch: int, side: int) -> dict[str, Any]:
    """Evaluate, and say what it took."""
    import attack_parts as parts
    import torch

    from advdistill import ClassSet, Split, Threat
    from advdistill.engine.data import seeded
    from advdistill.engine.evaluate import Bench
    from advdistill.engine.participant import Participant
    from advdistill.engine.protocol import Protocol
    from advdistill.engine.store import Folder
    from advdistill.testing import ToyConfig, ToyDataset, ToyModel
    from advdistill.testing.toy import pattern

    torch.set_num_threads(1)

    class Made(Split):
        def __init__(self, classes: ClassSet) -> None:
            self.labels = torch.arange(count) % len(classes)
            self.ids = [f"made/{i:06d}" for i in range(count)]
            self._patterns = [pattern(name) for name in classes.names]

        def load(self, index: int, generator: torch.Generator | None = None) -> torch.Tensor:
            faint = self._patterns[int(self.labels[index])].unsqueeze(0)
            large = torch.nn.functional.interpolate(faint, size=(side, side))[0]
            noise = torch.rand(3, side, side, generator=seeded("made", index)) - 0.5
            return (0.5 + 0.05 * large + 0.2 * noise).clamp(0, 1)

    start = time.perf_counter()
    classes = ToyDataset.classes
    participant, split = Participant(ToyModel(ToyConfig()), classes), Made(classes)
    attack = parts.attack({"use": "pgd", "steps": 2})
    bench = Bench(participant, lambda name: split, 0, batch_size=batch, store=Folder(folder, "made"))
    column = next(bench.columns([Protocol("benchmark", attack=attack, threat=Threat("linf", 1 / 255))]))
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.perf_counter() - start,
        "attacked": int(column.outcome.attacked.sum()),
        "right": column.outcome.count.hits,
    }


if __name__ == "__main__":
    main()
