"""What the benchmarks of steps share.

Guarantees:
- a run is timed in the arithmetic that its headline says: TF32 is on where it was asked for, off elsewhere, and as
  before afterwards.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_run_computes_as_asked(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path])
    import step_parts

    def allowed() -> set[bool]:
        return {torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32}

    before = allowed()
    words = ["--model", "advdistill_demo:small.json", "--classes", "5", "--precision", precision]
    with step_parts.a_run(step_parts.parser("").parse_args(words)):
        assert allowed() == {precision == "tf32"}
    assert allowed() == before
