"""The evaluation card, and pictures of evaluations.

Guarantees:
- who attacked is said in one sentence: knowledge, guesses, source, questions, goal, ball, resolution;
- accuracies are over all samples, with Wilson intervals; passes, boundary, size and rise over those attacked; stages,
  roundings and disagreements are counted; sizes known to break are quantiles over the samples that were right;
- worst cases and curves are per ball; a curve begins at clean accuracy and says whether it reaches 0;
- the headline says robust only of a white-box attack that moved pixels and raised the loss; else it says that nothing
  was measured, on what, and why; an attack that did nothing takes no credit, but what it broke still counts; flags are
  named in it;
- convergence stands with its numbers, whatever its verdict; doubts that could not be told share a line with others of
  the same reason;
- the card is JSON without NaN, and its Markdown shows all of this with tables that every name leaves whole;
- pictures show the curves' points, shots in their order with all images last, and the front; a format that is not known
  is refused, and a failed write leaves nothing behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from outcome_parts import EPS, PGD, SCORES, WHITE, clean_column, column, evaluation, outcome, statement

from advdistill import DataError, RunError, UsageError
from advdistill.engine.card import attacker, card, curves, markdown, settings, unmeasured
from advdistill.engine.compare import Point
from advdistill.engine.count import Count
from advdistill.engine.indicator import Indicator
from advdistill.engine.outcomes import Column, Evaluation
from advdistill.engine.pictures import eps_figure, front_figure, save, save_curves, shots_figure

CLEAN = torch.arange(100) < 90
RIGHT = torch.arange(100) < 40


def attacked(name: str = "pgd", **more: Any) -> Column:
    """90 of 100 are right when clean, 40 withstand."""
    return column(name, outcome(CLEAN, RIGHT, **more))


def told(*columns: Column, indicators: tuple[Indicator, ...] = (), **facts: Any) -> dict[str, Any]:
    return card(evaluation("m", clean_column(CLEAN), *columns, **facts), indicators)


def of(said: dict[str, Any], heading: str) -> dict[str, Any]:
    (found,) = [each for each in said["columns"] if each["heading"] == heading]
    return dict(found)


# Who attacked


def test_who_attacked() -> None:
    assert attacker(statement("pgd", PGD)) == (
        "white-box: knows weights, prompts, templates, class names; asks gradients; untargeted; linf 8/255 at 32x24"
    )
    guessing = {**WHITE, "prompts": "guessed", "goal": "targeted at each class in turn"}
    said = attacker(statement("x", PGD, attacker=guessing, knowledge="grey-box", threat={"norm": "l2", "eps": 0.5}))
    assert said == (
        "grey-box: knows weights, templates, class names; guesses prompts; asks gradients; "
        "targeted at each class in turn; l2 0.5 at 32x24"
    )
    blind = attacker(statement("x", PGD, attacker=SCORES, knowledge="transfer", source={"model": "base"}))
    assert "does not know weights, prompts, templates; makes the images on base; asks scores" in blind
    assert attacker(statement("clean")) == "nobody: images as they are"


def test_settings_in_a_line() -> None:
    wrapped = {"use": "advdistill:eot", "attack": PGD, "draws": 20, "targets": [1, 2], "step": 2 / 255}
    assert settings(wrapped) == "eot (attack pgd (steps 20, restarts 2), draws 20, targets [1, 2], step 0.00784314)"
    assert settings({"use": "other:pgd"}) == "other:pgd"


# What was measured


def test_numbers_of_a_column() -> None:
    size = torch.where(torch.arange(100) < 45, EPS, EPS / 2) * CLEAN
    rounded = RIGHT | (torch.arange(100) < 43)
    nearest = torch.where(RIGHT, torch.inf, EPS * torch.arange(100) / 100)
    more = {
        "size": size,
        "rounded": rounded,
        "claimed": RIGHT | (torch.arange(100) < 41),
        "nearest": nearest,
        "stage": torch.where(CLEAN & ~RIGHT, torch.arange(100) % 2, -1).to(torch.int16),
        "forwards": torch.where(CLEAN, torch.arange(100), 0).int() + CLEAN.int(),
        "rise": torch.where(RIGHT, 1.0, 3.0).double(),
    }
    said = of(told(Column("aa", statement("aa", PGD), outcome(CLEAN, RIGHT, **more), ("apgd", "square"))), "aa")
    assert (said["hits"], said["total"], said["accuracy"]) == (40, 100, 0.4)
    assert said["wilson95"] == list(Count(40, 100).wilson())
    assert said["attacked"] == 90
    assert said["passes"]["forwards"] == {"mean": 45.5, "max": 90}
    assert said["passes"]["backwards"] == {"mean": 20.0, "max": 20}
    assert said["stages"] == [{"name": "apgd", "broke": 25}, {"name": "square", "broke": 25}]
    assert said["boundary"] == 0.5 and said["max_size"] == pytest.approx(EPS)
    assert said["mean_rise"] == pytest.approx((40 * 1 + 50 * 3) / 90)
    assert (said["broken"], said["broken_as_png"], said["disputed"]) == (50, 47, 1)
    # Of 90 that were right, 50 have a known size: 0.40 to 0.89 ε; the 9th, the 45th, and none for the 81st.
    assert said["nearest"]["10 %"] == pytest.approx(0.48 * EPS)
    assert said["nearest"]["50 %"] == pytest.approx(0.84 * EPS)
    assert said["nearest"]["90 %"] is None


def test_the_worst_case_is_of_one_ball() -> None:
    other = torch.arange(100) % 2 == 0
    said = told(
        attacked(),
        column("square", outcome(CLEAN, CLEAN & other), attack={"use": "square"}, attacker=SCORES, knowledge="scores"),
        column("pgd x4", outcome(CLEAN, torch.zeros_like(CLEAN)), eps=4 * EPS),
    )
    near, far = said["worst"]
    assert (near["attacks"], near["hits"], near["eps"]) == (["pgd", "square"], 20, EPS)
    assert (far["attacks"], far["hits"]) == (["pgd x4"], 0)
    assert said["headline"].startswith(
        "Robust accuracy 20.0 % [13.3–28.9] within linf 8/255, against the worst case of 2"
    )
    (known,) = said["nearest"]
    assert known["norm"] == "linf" and known["quantiles"]["50 %"] == pytest.approx(EPS / 2)


def test_a_curve_begins_at_clean_and_says_where_it_ends() -> None:
    at = {2.0: 10, 0.5: 70, 1.0: 40}
    columns = [column(f"pgd x{t}", outcome(CLEAN, torch.arange(100) < n), eps=t * EPS) for t, n in at.items()]
    (curve,) = curves(
        evaluation("m", clean_column(CLEAN), *columns, column("other", outcome(CLEAN, RIGHT), attack={"use": "x"}))
    )
    assert [(point["eps"], point["hits"]) for point in curve["points"]] == [
        (0.0, 90), (EPS / 2, 70), (EPS, 40), (2 * EPS, 10),
    ]  # fmt: skip
    assert not curve["zero"] and curve["said"] == "does not reach 0: 10.0 % [5.5–17.4] hold at linf 16/255"
    (full,) = curves(evaluation("m", *columns, column("end", outcome(CLEAN, CLEAN & False), eps=1.0)))
    assert full["zero"] and full["said"] == "nothing withstands linf 255/255"


def test_base_to_new() -> None:
    base, new = (column("pgd", outcome(CLEAN, torch.arange(100) < n), scope=s) for s, n in (("base", 60), ("new", 30)))
    said = card(evaluation("m", base, new))
    assert said["base_to_new"] == {"pgd": pytest.approx([0.6, 0.3, 0.4])}
    assert "pgd: base 60.0 %, new 30.0 %, harmonic mean 40.0 %." in markdown(said)


# The headline


def test_the_headline_of_a_good_measurement() -> None:
    assert told(attacked())["headline"] == (
        "Robust accuracy 40.0 % [30.9–49.8] within linf 8/255, against pgd, of 100 samples; clean 90.0 %."
    )


STILL = {"size": torch.zeros(100), "rise": torch.zeros(100).double()}
FLAT = {"rise": torch.zeros(100).double()}
FALLING = {"rise": torch.full((100,), -1.0).double()}
UNKNOWN = {"rise": torch.full((100,), torch.nan).double()}
LAZY = {"rise": torch.where(RIGHT, 0.0, 5.0).double()}
UNSPENT = {"forwards": torch.zeros(100, dtype=torch.int32)}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (STILL, "no pixel was changed"),
        (FLAT, "the loss did not rise"),
        (FALLING, "the loss did not rise"),
        (UNKNOWN, "the loss did not rise"),
        (LAZY, "40 of the 40 samples that withstood were not moved"),
        (UNSPENT, "no pass was spent"),
    ],
    ids=["still", "flat", "falling", "nan", "lazy", "unspent"],
)
def test_what_did_nothing_is_not_robust(more: dict[str, Any], why: str) -> None:
    said = told(attacked(**more))
    assert said["headline"] == f"Not measured within linf 8/255: the attack did nothing (pgd: {why})."
    assert "obust" not in said["headline"]
    assert f"**not measured: {why}**" in markdown(said)


def test_samples_that_an_attack_did_nothing_to_are_told() -> None:
    some = torch.where(torch.arange(100) < 7, 0.0, 1.5).double()
    said = told(attacked(rise=some))
    assert "Not measured: the attack did nothing on 7 of those that withstood." in said["headline"]
    assert of(said, "pgd")["idle"] == 7 and "did nothing on 7 that withstood" in markdown(said)
    # Images from elsewhere need not raise this model's loss on every sample; they moved, and that is what they can do.
    transfer = column("t", outcome(CLEAN, RIGHT, rise=some), source={"model": "base"}, knowledge="transfer")
    assert of(told(transfer), "t")["idle"] == 0


def test_an_infinite_rise_is_a_rise() -> None:
    assert unmeasured(attacked(rise=torch.where(RIGHT, 0.1, torch.inf).double())) == ""


def test_nothing_left_to_attack_is_0_not_unmeasured() -> None:
    none = torch.zeros(100, dtype=torch.bool)
    assert unmeasured(column("pgd", outcome(none, none))) == ""


def test_an_attack_that_did_nothing_takes_no_credit_but_keeps_what_it_broke() -> None:
    still = column("other", outcome(CLEAN, RIGHT & (torch.arange(100) > 4), **STILL))
    headline = told(attacked(), still)["headline"]
    assert headline.startswith("Robust accuracy 35.0 %")
    assert "Some attacks did nothing (other: no pixel was changed)." in headline


def test_without_a_white_box_attack_nothing_is_robust() -> None:
    square = column("square", outcome(CLEAN, RIGHT), attack={"use": "square"}, attacker=SCORES, knowledge="scores")
    headline = told(square)["headline"]
    assert headline.startswith("40.0 % [30.9–49.8] withstand within") and "this is not robustness" in headline
    still = attacked(**STILL)
    assert "this is not robustness" in told(still, square)["headline"]


def test_nothing_attacked() -> None:
    assert told()["headline"] == "Nothing was attacked. clean 90.0 % [82.6–94.5]."


def test_flags_are_named_in_the_headline() -> None:
    doubts = (
        Indicator("zero gradients", 0.4, 0.01, "flag", "attack with bpda", "pgd"),
        Indicator("noise", 0.0, 0.005, "ok"),
        Indicator("stochastic", None, 0.1, "unknown", "ask twice"),
    )
    said = told(attacked(), indicators=doubts)
    assert said["headline"].endswith(" Doubtful: zero gradients.")
    text = markdown(said)
    assert "- **zero gradients** (pgd): 0.4, threshold 0.01. attack with bpda" in text
    assert "- stochastic could not be told: ask twice" in text
    assert "- Nothing to see: noise." in text
    assert "None was looked for." in markdown(told(attacked()))


def test_convergence_stands_with_its_numbers() -> None:
    doubts = (
        Indicator("steps not converged", 0.0125, 0.005, "flag", "double them", "apgd, 32 of test"),
        Indicator("more steps help the defender", 0.0, 0.005, "ok", "", "pgd-40"),
        Indicator("restarts not converged", 0.004, 0.005, "ok", "", "apgd, 32 of test"),
        Indicator("a larger radius helps the defender", None, 0.005, "unknown", "there is no larger ball"),
        Indicator("noise", 0.0, 0.005, "ok"),
    )
    text = markdown(told(attacked(), indicators=doubts))
    assert text.count("| doubled, or raised | seen in | share | threshold | verdict |") == 1
    assert "| steps: more samples broken, or others | apgd, 32 of test | 1.2 % | 0.5 % | flag |" in text
    assert "| steps: fewer samples broken | pgd-40 | 0.0 % | 0.5 % | ok |" in text
    assert "| restarts: more samples broken | apgd, 32 of test | 0.4 % | 0.5 % | ok |" in text
    assert "| radius" not in text and "- Nothing to see: noise.\n" in text
    assert "| doubled" not in markdown(told(attacked(), indicators=doubts[3:]))


def test_one_reason_is_told_once() -> None:
    doubts = [Indicator(name, None, 0.1, "unknown", "nothing to compare") for name in ("one", "two")]
    text = markdown(told(attacked(), indicators=(*doubts, Indicator("three", None, 0.1, "unknown", "no steps", "pgd"))))
    assert "- one, two could not be told: nothing to compare\n" in text
    assert "- three (pgd) could not be told: no steps\n" in text


# Markdown and JSON


def test_the_card_is_json() -> None:
    odd = attacked(rise=torch.full((100,), torch.nan).double(), nearest=torch.full((100,), torch.inf))
    said = told(odd, column("later", outcome(CLEAN & False, RIGHT & False)))
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_markdown() -> None:
    facts = {"recipe": {"name": "apd", "seed": 3}, "versions": {"advdistill": "0.1.0"}}
    text = markdown(told(attacked("a|b"), attacked("pgd"), **facts))
    lines = text.splitlines()
    assert lines[0] == "# m" and text.endswith("\n") and not text.endswith("\n\n")
    assert "model `m` (m) · recipe `apd`, seed 3 · advdistill 0.1.0" in lines
    assert "| worst of 2 | 40.0 % [30.9–49.8] | 100 | every one of a\\|b, pgd; linf 8/255 |" in lines
    assert "- a|b, pgd: `pgd (steps 20, restarts 2)`" in lines
    assert "| pgd | 90 | 21.0 (21) | 20.0 (20) | 100.0 % | linf 8/255 | +1.5 | 50 | 50 stay so |" in lines
    assert (
        "Of the samples that are right, known to break: 10 % within linf 4/255, 50 % within linf 4/255, "
        "less than 90 % at any size that was tried." in lines
    )
    assert any("100 of 200 of `test` (d1), fp32, seed 0; classified with “a photo of a {}.”" in line for line in lines)
    assert "- a|b, pgd: crafted with the model's own prompts." in lines
    tables = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    widths = {line.count("|") for line in tables}
    assert widths == {5, 10}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {
                "source": {"model": "base", "fingerprint": "f"},
                "knowledge": "transfer",
                "templates": ["a {}.", "one {}."],
            },
            "the undefended model's sentences: “a {}.”, “one {}.”",
        ),
        (
            {"source": {"model": "x.safetensors", "fingerprint": "f"}, "knowledge": "transfer"},
            "the prompts of x.safetensors",
        ),
        ({"attacker": SCORES, "knowledge": "scores"}, "no prompts: the model is only asked"),
        (
            {"attacker": {**WHITE, "prompts": "guessed"}, "attack": {**PGD, "prompts": "hand-written"}},
            "guessed prompts (prompts hand-written)",
        ),
    ],
    ids=["base", "transfer", "scores", "guessed"],
)
def test_the_prompts_that_images_were_made_with(more: dict[str, Any], words: str) -> None:
    assert f"- x: crafted with {words}." in markdown(told(column("x", outcome(CLEAN, RIGHT), **more)))


# Pictures


def run(name: str, shots: int, right: int, seed: int = 0) -> Evaluation:
    clean = torch.ones(100, dtype=torch.bool)
    facts = {"recipe": {"name": name, "shots": shots, "seed": seed}}
    return evaluation(name, clean_column(clean), column("pgd", outcome(clean, torch.arange(100) < right)), **facts)


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    columns = [column(f"pgd x{t}", outcome(CLEAN, torch.arange(100) < n), eps=t * EPS) for t, n in ((1, 40), (2, 10))]
    curved = evaluation("m", clean_column(CLEAN), *columns)
    (axes,) = eps_figure([curved]).axes
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [pytest.approx(p) for p in ([0, 0.9], [8, 0.4], [16, 0.1])]
    save_curves(curved, tmp_path)
    assert (tmp_path / "eps.png").read_bytes().startswith(b"\x89PNG")
    flat = tmp_path / "flat"
    flat.mkdir()
    save_curves(evaluation("m", clean_column(CLEAN), columns[0]), flat)
    assert list(flat.iterdir()) == []
    with pytest.raises(DataError, match="two radii"):
        eps_figure([evaluation("m", columns[0])])


def test_shots_are_drawn_in_order_all_last() -> None:
    runs = [run("apd", 0, 80), run("apd", 4, 60), run("apd", 1, 30), run("apd", 4, 50, seed=1)]
    axes = shots_figure(runs, ["pgd"]).axes[0]
    means = next(line for line in axes.lines if line.get_label() == "apd")
    assert means.get_xydata().tolist() == [pytest.approx(p) for p in ([1, 0.3], [4, 0.55], [8, 0.8])]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "all"]
    with pytest.raises(DataError, match="different shots"):
        shots_figure([run("apd", 4, 60), run("apd", 4, 50)])


def test_the_front_is_drawn() -> None:
    points = [Point("a", 0.9, 0.4, {}), Point("b", 0.8, 0.3, {"a": ("robust",)})]
    (axes,) = front_figure(points, ("clean", "pgd")).axes
    assert {text.get_text() for text in axes.texts} == {"a", "b"}
    assert axes.get_xlabel() == "clean" and axes.get_ylabel() == "pgd"
    with pytest.raises(DataError, match="no front"):
        front_figure([], ())


def test_pictures_that_cannot_be_written(tmp_path: Path) -> None:
    figure = front_figure([Point("a", 0.9, 0.4, {})], ("clean", "pgd"))
    with pytest.raises(UsageError, match=r"\.png, \.pdf, \.svg"):
        save(figure, tmp_path / "front.jpeg")
    with pytest.raises(UsageError, match="there is no folder"):
        save(figure, tmp_path / "nowhere" / "front.png")
    (tmp_path / "front.png").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        save(figure, tmp_path / "front.png")
    assert [path.name for path in tmp_path.iterdir()] == ["front.png"]
