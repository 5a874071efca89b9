"""What is pinned here: what a step does faster gives the numbers of the plain way.

- An attack on a whole batch gathers nothing and gives, bit for bit, what it gives on all rows by number; closed rows
  stay where they are.
- Noise that is mixed in place has the bits of the formula; keys are left as they were.
- The projection in one pass is the one in four, bit for bit, at the ball's and the pixels' ends too.
- AdamW in one pass goes where torch's plain one goes.
- Views that share a forward have the loss and the gradients that each has alone.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from advdistill_attacks.configs import PGD as PGDConfig
from advdistill_attacks.pgd import PGD
from advdistill_mmt_ard.configs import MTARD as MTARDConfig
from advdistill_mmt_ard.mtard import MTARD
from strategy_scenes import Scene, same_gradients
from torch import Tensor, nn

from advdistill import Noise, Problem, Threat
from advdistill.engine import optim
from advdistill.recipe.model import Optim


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_whole_batch_is_all_of_its_rows(norm: str, momentum: float) -> None:
    scene = Scene()
    scene.attack, scene.threat = PGD(PGDConfig(steps=3, momentum=momentum)), Threat(norm, 8 / 255)
    numbered = scene.step().attack(rows=torch.arange(len(scene.images)))
    whole = scene.step().attack()
    assert torch.equal(whole, numbered)
    assert not torch.equal(whole, scene.images)


def test_closed_rows_stay() -> None:
    """Rows that are broken at the start are not climbed from; the others go where they would go alone."""
    scene = Scene()
    asked: list[list[int]] = []

    def logits(images: Tensor, rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return scene.logits("student", images)

    wrong = scene.labels.clone()
    wrong[1] = (wrong[1] + 1) % 6
    problem = Problem(scene.images, wrong, None, logits, Threat("linf", 1e-4), watch=True)
    problem.predict(scene.images, problem.rows)
    open_rows = problem.open().tolist()
    assert 1 not in open_rows and open_rows
    attack, noise = PGD(PGDConfig(steps=2, random_start=False)), Noise(0, "test", 0, scene.samples)
    found = attack(problem, problem.threat, noise)
    assert asked[1] == open_rows
    alone = torch.tensor(open_rows)
    part = Problem(scene.images[alone], wrong[alone], None, lambda x, _: scene.logits("student", x), problem.threat)
    assert torch.equal(found[alone], attack(part, problem.threat, noise.of(alone)))
    assert torch.equal(found[1], scene.images[1])


def plain_mix(x: Tensor) -> Tensor:
    """lowbias32 in 64-bit arithmetic, where nothing wraps by itself."""
    x = x & 0xFFFFFFFF
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = ((x * (0x846CA68B >> 16) & 0xFFFF) << 16) + x * (0x846CA68B & 0xFFFF) & 0xFFFFFFFF
    return x ^ (x >> 16)


def test_noise_has_the_bits_of_the_formula() -> None:
    noise = Noise(0, "test", 0, torch.tensor([0, 7, 2**31 - 1]))
    first, second = (key.long() for key in noise._keys)
    position = torch.arange(3 * 5 * 5)
    bits = plain_mix(plain_mix(position ^ plain_mix(first).unsqueeze(1)) ^ (second & 0xFFFFFFFF).unsqueeze(1))
    expected = (bits >> 8).float() * 2.0**-24
    for _ in range(2):  # keys are not used up
        assert torch.equal(noise.uniform((3, 5, 5)).flatten(1), expected)


def test_the_projection_is_the_one_in_steps() -> None:
    clean = torch.linspace(0, 1, 48).view(1, 3, 4, 4)
    threat = Threat("linf", 8 / 255)
    images = clean + torch.linspace(-0.1, 0.1, 48).roll(7).view_as(clean)
    plain = torch.clamp(torch.minimum(torch.maximum(images, clean - threat.eps), clean + threat.eps), 0, 1)
    assert torch.equal(threat.project(images, clean), plain)


def test_adamw_in_one_pass_goes_where_the_plain_one_goes() -> None:
    learner = SimpleNamespace(trainable={"m": nn.Parameter(torch.randn(5, 4)), "v": nn.Parameter(torch.randn(4))})
    plain = [nn.Parameter(p.detach().clone()) for p in learner.trainable.values()]
    ours = optim.optimizer(Optim(lr=1e-2, weight_decay=0.1), {"student": learner})  # type: ignore[dict-item]
    theirs = torch.optim.AdamW(
        [{"params": plain[:1], "weight_decay": 0.1}, {"params": plain[1:], "weight_decay": 0.0}],
        lr=1e-2, foreach=False, fused=False,
    )  # fmt: skip
    for _ in range(5):
        for mine, its in zip(learner.trainable.values(), plain, strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    for mine, its in zip(learner.trainable.values(), plain, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-6)


def test_views_that_share_a_forward_say_the_same() -> None:
    found = []
    for shares in (True, False):
        scene = Scene("robust", "clean")
        for participant in scene.everybody.values():
            participant.model.double().batch_independent = shares
            participant._forget()
        scene.images = scene.images.double()
        loss = scene.losses(MTARD(MTARDConfig())).total()
        found.append((loss.detach(), scene.gradients(loss)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    same_gradients(found[0][1], found[1][1])
