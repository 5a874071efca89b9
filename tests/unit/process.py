"""One of two processes, for test_distributed.py: does what it is told, and prints what came of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from advdistill.engine.distributed import Lost, World, joined


def threads() -> list[str]:
    """The names of this process's threads, as Linux knows them."""
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


def exchange(world: World) -> dict[str, Any]:
    """Every way in which processes exchange something."""
    mine = [torch.full((2, 3), 1.0 + world.rank), torch.tensor(10.0 * world.rank)]
    world.sum(mine)
    rows = torch.arange(5.0).unsqueeze(1).repeat(1, 2)
    return {
        "rank": world.rank,
        "sum": [tensor.tolist() for tensor in mine],
        "whole": world.whole(rows[world.share(5)], 5).tolist(),
        "gather": world.gather({"rank": world.rank, "tensor": torch.tensor([world.rank])}),
        "told": world.told(lambda: f"process {world.rank}"),
        "any": [world.any(False), world.any(world.rank == 1), world.any(True)],
        "inside": threads(),
    }


def main(order: str) -> None:
    said: dict[str, Any] = {}
    try:
        with joined(torch.device("cpu")) as world:
            said = exchange(world)
            said["gather"] = [(each["rank"], each["tensor"].tolist()) for each in said["gather"]]
            if order == "leave" and world.rank:
                os._exit(7)
            if order == "fail" and world.rank:
                raise ValueError("on purpose")
            world.wait()
    except Lost as error:
        said["lost"] = error.message
    except ValueError as error:
        said["failed"] = str(error)
    print(json.dumps({**said, "after": threads()}))


if __name__ == "__main__":
    main(sys.argv[1])
