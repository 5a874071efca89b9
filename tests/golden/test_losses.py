"""What is pinned here, for every strategy of ours and every setting that changes its formula:

- over five batches, the mean loss is what equations.py says to 1e-10, adaptive weights and temperatures included;
- so are the gradients of everything that learns, stopped ones included; what is frozen gets none;
- so is what the attack raises, sample by sample, and how it changes with the pixels; a batch is attacked once, unless
  its loss does not depend on it;
- the order of the classes changes none of this;
- the batches reach what the formulas tell apart: negative cosines, misled teachers, temperatures and weights that move;
- the complex step that the gradients are held against is right where nothing is stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import equations
import numpy as np
import pytest
import torch
from cases import CASES, HOT, TWO, Case
from equations import Array, Model, Result, World, at
from tables import CLASSES, TABLES, Room, permuted, world

from advdistill import Clock
from advdistill.hooks.registry import default_registry

BATCHES = 5
TINY = 1e-30  # length of a complex step


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Buffers that strategies make are as exact as the tables."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def batches(case: Case) -> list[list[World]]:
    """The worlds of a run, batch by batch and phase by phase; what they remember is yet to be told."""
    phases, found = len(case.build().phases), []
    for batch in range(BATCHES):
        first = world(case.teachers, batch, learns=frozenset(case.learns), progress=batch / BATCHES)
        later = (world(case.teachers, batch + BATCHES * phase) for phase in range(1, phases))
        found.append([first, *(replace(first, S=w.S, T=w.T, phase=i) for i, w in enumerate(later, 1))])
    return found


@dataclass
class Found:
    """What a strategy did with a batch in one phase. Attacks: (n,) objective and its slope, of each."""

    loss: float
    gradients: dict[tuple[str, str], Array]
    attacks: list[tuple[Array, Array]]


def run(case: Case, worlds: list[list[World]]) -> list[list[Found]]:
    """The batches one after the other, as a run does it, except that nobody learns."""
    strategy, room, found = case.build(), Room(case.teachers, case.learns), []
    strategy.prepare(room.models)
    for number, phases in enumerate(worlds):
        labels = phases[0].y
        s, means = room.step(labels, Clock(number, BATCHES, 0)), Counter[str]()
        found.append([])
        for phase, w in zip(strategy.phases, phases, strict=True):
            room.enter(w)
            room.attack.found = []
            losses = phase(s)
            means.update({name: total.item() / len(labels) for name, total in losses.sums().items()})
            mean = losses.total().mean()
            found[-1].append(Found(mean.item(), room.gradients(mean), room.attack.found))
            s.forget()
        strategy.updated(means, Clock(number + 1, BATCHES, 0))
    return found


def remembering(case: Case, worlds: list[list[World]]) -> list[tuple[World, Result]]:
    """Every world with what it remembers, and what the equation says of it."""
    said, memory = [], {}
    for phases in worlds:
        told = [replace(w, memory=memory) for w in phases]
        said += [(w, case.says(w)) for w in told]
        memory = said[-1][1].memory
    return said


def nudged(w: World, role: str, **tables: Array) -> World:
    """The world in which somebody's tables are others."""
    if role == "student":
        return replace(w, S=replace(w.S, **tables))
    return replace(w, T={**w.T, role: replace(w.T[role], **tables)})


def models(w: World) -> dict[str, Model]:
    """Everybody, by role."""
    return {"student": w.S, **w.T}


def gradient(equation: Callable[[World], Result], w: World, role: str, name: str) -> Array:
    """Of the loss by each number of a table, by complex steps."""
    table = getattr(models(w)[role], name)
    found = np.zeros(table.shape)
    for place in np.ndindex(table.shape):
        bent = table.astype(complex)
        bent[place] += TINY * 1j
        found[place] = np.imag(equation(nudged(w, role, **{name: bent})).loss) / TINY
    return found


def slope(equation: Callable[[World], Result], w: World) -> Array:
    """(n,) of what the attack raises, by how adversarial an image is, which everybody sees."""
    for role, m in models(w).items():
        w = nudged(w, role, adversarial=m.adversarial + TINY * 1j * (m.adversarial - m.clean))
    return np.imag(equation(w).objective) / TINY


@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_gradients_and_objectives_are_the_equations(case: Case) -> None:
    worlds = batches(case)
    for found, (w, said) in zip(chain(*run(case, worlds)), remembering(case, worlds), strict=True):
        assert found.loss == pytest.approx(said.loss, rel=1e-10, abs=1e-12)
        for (role, name), by_torch in found.gradients.items():
            by_numpy = gradient(case.says, w, role, name)
            np.testing.assert_allclose(by_torch, by_numpy, rtol=1e-8, atol=1e-11, err_msg=f"{role}.{name}")
        needed = w.phase == 0 and found.gradients["student", "adversarial"].any()
        assert needed <= len(found.attacks) <= 1
        for objective, by_pixels in found.attacks:
            np.testing.assert_allclose(objective, said.objective, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(by_pixels, slope(case.says, w), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_order_of_the_classes_changes_nothing(case: Case) -> None:
    worlds = batches(case)
    order = np.random.default_rng(0).permutation(CLASSES)
    other = run(case, [[permuted(w, order) for w in phases] for phases in worlds])
    for one, two in zip(chain(*run(case, worlds)), chain(*other), strict=True):
        assert one.loss == pytest.approx(two.loss, rel=1e-10)
        np.testing.assert_allclose(one.gradients["student", "adversarial"], two.gradients["student", "adversarial"])


@pytest.mark.parametrize("equation", [equations.trades, equations.fap, equations.mtard], ids=lambda e: e.__name__)
def test_complex_steps_are_derivatives(equation: Callable[[World], Result]) -> None:
    w, small = world(("clean", "robust"), 0), 1e-6
    for name in TABLES:
        table, by_differences = getattr(w.S, name), np.zeros(getattr(w.S, name).shape)
        for place in np.ndindex(table.shape):
            ends = []
            for step in (small, -small):
                moved = table.copy()
                moved[place] += step
                ends.append(equation(nudged(w, "student", **{name: moved})).loss)
            by_differences[place] = (ends[0] - ends[1]) / (2 * small)
        np.testing.assert_allclose(gradient(equation, w, "student", name), by_differences, rtol=1e-6, atol=1e-8)


def test_the_batches_reach_what_the_formulas_tell_apart() -> None:
    worlds = [world(("clean", "robust"), batch) for batch in range(BATCHES)]
    for role, image in (("clean", "clean"), ("robust", "adversarial")):
        cosines = [at(w.T[role].cos(image), w.y) for w in worlds]
        assert any((c < 0).any() for c in cosines) and any((c > 0.1).any() for c in cosines)
    misled = np.array([w.T["clean"]("adversarial").argmax(-1) != w.y for w in worlds])
    assert misled.any() and not misled.all()
    hot = Case("b-mtard", equations.b_mtard, settings=HOT, **TWO)
    memories = [said.memory for _, said in remembering(hot, batches(hot))]
    reached = {round(t, 6) for memory in memories for t in memory["temperatures"].values()}
    assert {1.0, 1.3} < reached, "both bounds, and something between them"
    weights = [memory["weights"]["clean"] for memory in memories]
    assert len(set(weights)) == BATCHES and max(abs(a - b) for a, b in pairwise(weights)) > 0.01


def test_every_strategy_of_ours_has_an_equation() -> None:
    registry = default_registry()
    ours = {entry.spec.name for entry in registry.entries("strategy") if entry.plugin.dist == "advdistill"}
    assert ours == {case.strategy for case in CASES}
