"""How alike relevance maps are, which samples are shown, and the picture.

Guarantees:
- similarity: 1 of equal maps whatever their scale, cosine and Spearman as by hand, ties shared, finer maps averaged
  down, images whose map says nothing left out;
- a picture shows broken samples and those that withstood, spread over all, and never more than there are;
- models without image features of their own, or whose tower cannot tell, say that they have no maps;
- the picture has a panel for every map and says of every model what it says, right or wrong by colour and sign, for
  small images and large ones, with a map that says nothing too.
"""

from __future__ import annotations

import pytest
import torch
from outcome_parts import outcome
from scipy.stats import spearmanr

from advdistill.engine.participant import Participant
from advdistill.engine.portraits import RIGHT, WRONG, Looker, overlay, relevance_figure
from advdistill.engine.relevance import Maps, Similarity, maps, shown
from advdistill.engine.teaching import Said
from advdistill.engine.types import Threat
from advdistill.errors import UsageError
from advdistill.testing import ToyConfig, ToyDataset, ToyModel


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_similarity_by_hand():
    first, second = drawn(5, 4, 4), drawn(5, 4, 4, seed=1).mul(4).floor()  # with ties
    found = Similarity.of(first, second)
    a, b = first.flatten(1).double(), second.flatten(1).double()
    cosines = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    ranks = [spearmanr(one, other).statistic for one, other in zip(a.numpy(), b.numpy(), strict=True)]
    assert found.cosine.value == pytest.approx(cosines.mean().item())
    assert found.rank.value == pytest.approx(sum(ranks) / 5)
    same = Similarity.of(first, 3 * first)
    assert same.cosine.value == pytest.approx(1) and same.rank.value == pytest.approx(1)
    # Ranks stay under a power, cosines do not.
    bent = Similarity.of(first, first**8)
    assert bent.rank.value == pytest.approx(1) and bent.cosine.value < 0.9


def test_grids_are_brought_together_and_empty_maps_left_out():
    coarse = drawn(3, 2, 2)
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert Similarity.of(fine, coarse).cosine.value == pytest.approx(1)
    coarse[1] = 0
    assert Similarity.of(fine, coarse).cosine.count == 2
    assert Similarity.of(torch.zeros(3, 2, 2), fine) is None


def test_broken_and_held_samples_are_shown():
    clean = torch.ones(40, dtype=torch.bool)
    clean[5] = False
    right = clean.clone()
    right[[7, 8, 9, 30]] = False
    some = shown(outcome(clean, right), 6)
    assert len(some) == 6 == len(set(some)) and some == sorted(some)
    assert sum(not right[i] for i in some) == 3 and 5 not in some and max(some) > 30
    assert shown(outcome(clean, clean), 6)[-1] == 39  # nothing broken: all withstood
    assert shown(outcome(clean[4:6], clean[4:6]), 6) == [0, 1]


def test_who_has_no_maps_says_so():
    data = ToyDataset(None)
    images = drawn(2, 3, 16, 16)
    with pytest.raises(UsageError, match="no relevance maps"):
        maps(Participant(ToyModel(ToyConfig()), data.classes), images, torch.tensor([0, 1]))


@pytest.mark.parametrize("side", [32, 224])
def test_the_picture(side):
    clean = drawn(2, 3, side, side)
    adversarial = clean.clone()
    adversarial[0] += 0.01
    labels = torch.tensor([0, 1])
    sure = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    lookers = [
        Looker("student", Maps(drawn(2, 4, 4), torch.zeros(2, 4, 4)), Said(sure, sure.flip(1))),
        Looker("robust teacher", Maps(drawn(2, 7, 7), drawn(2, 7, 7)), Said(sure, sure)),
    ]
    names = ("cat", "a $dog_1$")
    figure = relevance_figure("a title", clean, adversarial, labels, names, Threat("linf", 8 / 255), lookers)
    assert len(figure.axes) == 2 * (3 + 2 * 2) + 1  # and the colour bar
    texts = {(text.get_text(), text.get_color()) for text in figure.texts}
    assert ("cat 90 % ✓", RIGHT) in texts and ("a $dog_1$ 90 % ✗", WRONG) in texts
    assert {"a title", "student", "robust teacher", "not attacked", "on x", "on x'"} <= {text for text, _ in texts}
    figure.canvas.draw()
    assert overlay(clean[0], torch.zeros(4, 4)).shape[1:] == (192 if side == 32 else 224,) * 2


def test_an_overlay_tints_where_much_speaks():
    image = torch.full((3, 32, 32), 0.5)
    found = overlay(image, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    grey = found.amax(0) - found.amin(0)  # without a tint the channels agree
    assert grey[:64, :64].mean() > 0.3 and grey[128:, 128:].max() < 0.05
