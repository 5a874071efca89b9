"""What is pinned here:

- `train.accumulate: auto` works a batch through in as few portions as fit: on a GPU by trying, on a host by counting
  what the graphs of small portions hold; all processes take the largest need; what is tried leaves nothing behind, and
  the run is the one of a big batch; the number is told;
- `auto` does not portion a model that learns by its batch's statistics;
- portions give every shipped strategy the losses and gradients of the big batch, uneven ones too; those that look at a
  batch's samples together say so, and are not portioned by `auto`;
- out of memory, in training and in evaluation, is an error that names the setting to change, without a traceback, with
  the last good state saved; what the failed step held is let go of first;
- the limits of a process and of its control groups are found.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
import yaml
from torch import Tensor

from advdistill.engine import build, memory
from advdistill.engine.distributed import World
from advdistill.engine.evaluate import Bench
from advdistill.engine.fit import Run
from advdistill.engine.folder import RunFolder
from advdistill.engine.strategy import Strategy
from advdistill.errors import RunError
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe
from advdistill.testing import ToyModel

CPU, MIB = torch.device("cpu"), 2**20
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
LEARNING: dict[str, Any] = {
    "strategy": {"use": "drifting"},
    "teachers": {"clean": {"use": "toy", "train": True}},
    "optim": {"use": "sgd", "lr": 1.0},
}


# --- as few portions as fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fits", "portions"), [(64, 1), (100, 1), (63, 2), (32, 2), (31, 4), (1, 64)])
def test_a_gpu_is_tried(monkeypatch: pytest.MonkeyPatch, fits: int, portions: int) -> None:
    tried = []

    def attempt(count: int) -> None:
        tried.append(count)
        if count > fits:
            raise FULL

    monkeypatch.setattr(torch, "empty", lambda *size, **how: None)  # the ballast; there is no GPU here
    assert memory.fewest_portions(64, attempt, torch.device("cuda")) == portions
    assert tried == [count for count in (64, 32, 16, 8, 4, 2, 1) if count >= 64 // portions]


def test_not_even_one_image_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(count: int) -> None:
        raise FULL

    monkeypatch.setattr(torch, "empty", lambda *size, **how: None)
    for device in (CPU, torch.device("cuda")):
        with pytest.raises(memory.OutOfMemory, match="out of memory") as caught:
            memory.fewest_portions(64, attempt, device)
        assert "train.class_chunk" in caught.value.hint
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available", lambda: MIB)
    with pytest.raises(memory.OutOfMemory, match="one image takes"):
        memory.fewest_portions(64, graph(1, 2), CPU)


def graph(fixed: int, each: int) -> Any:
    """Holds `fixed` + `each` * images MiB."""

    def attempt(count: int) -> None:
        kept = [torch.ones(size * MIB // 4, requires_grad=True) for size in (fixed, each * count)]
        torch.stack([tensor.clone().square().sum() for tensor in kept]).sum().backward()

    return attempt


@pytest.mark.parametrize(("free", "reserve", "size", "portions"), [(98, 0, 1, 1), (97, 0, 1, 2), (98, 1, 1, 2),
                                                                   (49, 0, 1, 3), (98, 0, 2, 3)])  # fmt: skip
def test_a_host_is_reckoned_with(
    monkeypatch: pytest.MonkeyPatch, free: int, reserve: int, size: int, portions: int
) -> None:
    monkeypatch.setattr(memory, "available", lambda: round((free + 0.1) * MIB / memory.USED))
    monkeypatch.setattr(World, "gather", lambda self, mine: [mine])
    # 3 MiB fixed and 5 MiB each: 19 images in 98 MiB.
    assert memory.fewest_portions(19, graph(3, 5), CPU, int(reserve * MIB / 1), World(0, size)) == portions


def test_all_processes_take_the_largest_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: None)
    monkeypatch.setattr(World, "gather", lambda self, mine: [mine, 3])
    assert memory.fewest_portions(8, lambda count: None, CPU, 0, World(0, 2)) == 3


def test_a_ledger_counts_storages_once_and_only_while_they_are_held() -> None:
    x, weight = torch.ones(MIB // 4, requires_grad=True), torch.ones(MIB // 4)
    ledger = memory.Ledger({weight.untyped_storage()._cdata})
    with ledger:
        y = x.exp()  # holds its output
        z = y * y + y * weight  # the same again, and weights
        assert ledger.now == ledger.peak == MIB
        w = z.exp()
    assert ledger.now == 2 * MIB
    w.sum().backward()
    assert ledger.now == 0 and ledger.peak == 2 * MIB
    with ledger:
        y = x.exp()
        del y
        gc.collect()
        assert ledger.now == 0


def test_a_trial_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_parts.recipe(tmp_path, "whole", **LEARNING)
    run_parts.train(whole)
    monkeypatch.setattr(memory, "available", lambda: MIB // 8)
    found = []
    reckoned = memory.fewest_portions
    monkeypatch.setattr(memory, "fewest_portions", lambda *a: found.append(reckoned(*a)) or found[-1])
    auto = {**run_parts.TOY["train"], "accumulate": "auto"}
    run_parts.train(run_parts.recipe(tmp_path, "auto", **LEARNING, train=auto, save={"every": 2}))
    assert found[0] > 1
    (started,) = run_parts.events(tmp_path / "auto", "run_started")
    assert f"in {found[0]} portions" in started["plan"]["budget"]
    one, other = (run_parts.tensors(tmp_path / name) for name in ("whole", "auto"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=0)
    monkeypatch.setattr(memory, "available", lambda: None)
    run_parts.train(run_parts.recipe(tmp_path, "fits", **LEARNING, train=auto))
    assert run_parts.same(run_parts.tensors(tmp_path / "fits"), one)


def test_what_learns_by_statistics_of_the_batch_is_not_portioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyModel, "batch_independent", False)
    monkeypatch.setattr(memory, "available", lambda: 0)
    auto = {**run_parts.TOY["train"], "accumulate": "auto"}
    run_parts.train(run_parts.recipe(tmp_path, **LEARNING, train=auto))
    assert "portions" not in run_parts.events(tmp_path / "run", "run_started")[0]["plan"]["budget"]


# --- portions ----------------------------------------------------------------------------------------------------

METHODS = [
    "demo_clean", "tecoa_digits", "r_adapt_digits", "trades_digits", "fap_digits", "fare_digits", "sim_clip_digits",
    "agft_digits", "pmg_aft_digits", "hpt_gpd_digits", "apt_digits", "moapt_digits", "adv_tp_digits",
    "capt_digits", "ard_digits", "rslad_digits", "iad_digits", "iad2_digits", "adaad_digits",
    "apd_digits", "apd_digits_ema", "apd_digits_alternate", "mtard_digits", "b_mtard_digits",
    "quickstart", "mmt_ard_three_digits",
]  # fmt: skip


def update(folder: Path, name: str, portions: int, **changes: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The means and the changes of one step of a recipe, with changes, on 7 images, by plain gradient descent."""
    tree = run_parts.merged(
        load_recipe(name).tree,
        {
            "train": {"steps": 1, "epochs": None, "batch_size": 7, "device": "cpu", "accumulate": 1},
            "optim": {"use": "sgd", "lr": 1.0, "schedule": None, "clip_norm": None},
            "evaluate": {"every": 0, "controls": None},
            "save": {"dir": str(folder / f"{name}-{portions}"), "every": 0},
            "report": None,
        },
    )
    tree = run_parts.merged(tree, changes)
    if "attack" in tree:
        tree["attack"]["steps"] = 2
    if "dropout" in tree["student"]:
        tree["student"]["dropout"] = 0
    made = folder / "short.yaml"
    made.write_text(yaml.safe_dump(tree))
    recipe = build.settled(load_recipe(made))
    with RunFolder(recipe, resume=False, overwrite=False) as at:
        run = Run(recipe, default_registry(), at, lambda event: None)
        run.portions = portions
        found: dict[str, Tensor] = {}

        def collected() -> list[Tensor]:
            for group in run.optimizer.param_groups:
                for number, parameter in enumerate(group["params"]):
                    if parameter.grad is not None:
                        found[f"{len(found)} {group.get('name', '')} {number}"] = parameter.grad.clone()
            return []

        run._gather_gradients = collected  # type: ignore[method-assign]
        means, _ = run.take(next(run.batches()))
    return means, found


@pytest.mark.parametrize("name", METHODS)
def test_portions_are_the_big_batch(tmp_path: Path, name: str) -> None:
    means, gradients = update(tmp_path, name, 1)
    for portions in (2, 3):  # 4 3, and 3 3 1
        parted, pulled = update(tmp_path, name, portions)
        assert parted == pytest.approx(means, rel=1e-4, abs=1e-5)
        assert pulled.keys() == gradients.keys() and gradients
        for key, gradient in gradients.items():
            assert (pulled[key] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, key


UNSURE = {
    "teachers": {"clean": {"use": "clip", "path": None, "model": "advdistill_demo:small.json", "weights": "random"}}
}
"""A clean teacher that is wrong about images."""


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adv_maple_digits", {}),
        ("mmt_ard_contrastive_digits", {}),
        ("mmt_ard_saad_digits", {}),
        ("ciard_digits", UNSURE),
    ],
)
def test_methods_that_mix_samples_are_known(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    whole, parted = (update(tmp_path, name, portions, **changes)[0] for portions in (1, 2))
    assert parted["loss"] != pytest.approx(whole["loss"], rel=1e-3)
    assert run_parts.build(load_recipe(name)).strategy.mixes


@pytest.mark.parametrize(("accumulate", "told"), [(2, 1), (1, 0), ("auto", 0)])
def test_a_method_that_mixes_samples_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: Any, told: int
) -> None:
    monkeypatch.setattr(Strategy, "mixes", True)
    monkeypatch.setattr(memory, "available", lambda: 0)
    run_parts.train(run_parts.recipe(tmp_path, train={**run_parts.TOY["train"], "accumulate": accumulate}))
    warned = [event["message"] for event in run_parts.events(tmp_path / "run", "warned")]
    assert sum("train.accumulate: 1" in message for message in warned) == told


# --- out of memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_training_that_runs_out_names_the_setting_and_keeps_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    held: list[weakref.ref[Any]] = []
    original, save = Run._update, Run._save

    def fails(self: Run, phase: Any, portions: Any) -> Any:
        if self.step == 2:
            large = torch.ones(10)
            held.append(weakref.ref(large))
            raise error
        return original(self, phase, portions)

    def saved(self: Run) -> None:
        assert held[0]() is None
        save(self)

    monkeypatch.setattr(Run, "_update", fails)
    monkeypatch.setattr(Run, "_save", saved)
    made = run_parts.recipe(tmp_path, **LEARNING)
    with pytest.raises(RunError, match="out of memory") as caught:
        run_parts.train(made)
    assert "train.accumulate" in caught.value.hint and "after step 2" in caught.value.hint
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    run_parts.train(made, resume=True)
    assert len(run_parts.events(tmp_path / "run", "step_done")) == 4


def test_evaluation_that_runs_out_names_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Bench, *args: Any) -> Any:
        raise FULL

    monkeypatch.setattr(Bench, "measure", fails)
    with pytest.raises(RunError, match="out of memory") as caught:
        run_parts.train(run_parts.recipe(tmp_path))
    assert "evaluate.batch_size" in caught.value.hint
    assert (tmp_path / "run" / "resume.safetensors").exists()


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory.named("hint"):
        raise RuntimeError("shapes differ")


LIMITED = """
import resource, sys, torch
torch.set_num_threads(1)
from advdistill.cli.main import main
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1100 << 20), size + (1100 << 20)))
sys.argv = ["advdistill", "train", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_a_process_with_a_limit(tmp_path: Path) -> None:
    """The real allocator says no; and `auto` finds what fits under the same limit."""
    measured = [f"evaluate.{what}" for what in ("undefended=false", "teachers=false", "every=0", "protocols=null")]
    told = "report=[{use: console}]"  # pictures would need memory of their own
    change = ["train.steps=1", "train.batch_size=1024", f"save.dir={tmp_path}/run", told, *measured]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LIMITED, "quickstart", *change]
    said = subprocess.run(words, capture_output=True, text=True, env=env)
    assert said.returncode == 1, said.stderr
    assert "out of memory" in said.stderr and "train.accumulate" in said.stderr and "Traceback" not in said.stderr
    said = subprocess.run([*words, "train.accumulate=auto", "--overwrite"], capture_output=True, text=True, env=env)
    assert "portions" in said.stdout + said.stderr
    assert said.returncode == 0, said.stderr


# --- limits ------------------------------------------------------------------------------------------------------


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    two = {"memory__current": "60", "memory__stat": "anon 5\ninactive_file 7\n"}
    group(tmp_path, memory__max="max", **two)
    group(tmp_path / "a", memory__max="100", **two)
    group(tmp_path / "a" / "b", memory__max="80", **two)
    one = {"memory__usage_in_bytes": "10", "memory__stat": "total_inactive_file 3"}
    group(tmp_path / "memory" / "c", memory__limit_in_bytes="30", **one)
    own = tmp_path / "own"
    own.write_text("4:memory:/c\n3:cpu:/c\n0::/a/b\n")
    assert sorted(memory._of_groups(tmp_path, own)) == [23, 27, 47]
    own.write_text("0::/elsewhere\n")  # as a container sees itself
    assert list(memory._of_groups(tmp_path / "a", own)) == [47]


def test_the_limit_of_a_process_counts() -> None:
    code = (
        "import resource; from advdistill.engine import memory; from pathlib import Path\n"
        "size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (99 << 20), -1))\n"
        "assert 50 << 20 < memory.available() <= 99 << 20"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
