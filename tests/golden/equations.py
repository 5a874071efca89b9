"""What every strategy minimises and its attack raises, in NumPy, as the papers and the released codes have it.

Nothing here knows of torch or of how advdistill computes. A `World` is one batch: what the student S and the teachers T
say of clean images x, of adversarial images xa and of the class names. An equation takes a world and, by the names of
the strategy's settings, what can be chosen; it returns the mean loss, what the attack raises for each sample, and what
the strategy must remember for the next batch.

Derivatives come from the complex step (Squire and Trapp 1998): f'(a) = Im f(a + ih) / h with h so small that nothing
is lost to rounding. Hence `stop`, the gradient that is stopped, is the real part; minima, clamps and comparisons look
at real parts as well. All logs are natural.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
x, xa = "clean", "adversarial"
stop = np.real


@dataclass(frozen=True)
class Model:
    """A CLIP, as far as a loss can tell.

    Attributes:
        clean, adversarial: (B, D) image features, not normalised. texts: (C, D) class features before normalisation.
        scale: its logit scale, exp(logit_scale).
    """

    clean: Array
    adversarial: Array
    texts: Array
    scale: float

    def __call__(self, image: str) -> Array:
        """(B, C) logits."""
        return self.scale * self.cos(image)

    def cos(self, image: str) -> Array:
        """(B, C) cosines of images and class names."""
        return unit(self.phi(image)) @ unit(self.texts).T

    def phi(self, image: str) -> Array:
        """(B, D) features."""
        found: Array = getattr(self, image)
        return found


@dataclass(frozen=True)
class World:
    """One batch.

    Attributes:
        S: the student. T: the teachers by role. y: (B,) labels. learns: roles whose teacher learns.
        progress: share of the run before this batch. phase: which of a batch's updates it is.
        memory: what the equation asked to remember after the batch before; empty at first.
    """

    S: Model
    T: Mapping[str, Model]
    y: Array
    learns: frozenset[str] = frozenset()
    progress: float = 0.0
    phase: int = 0
    memory: Mapping[str, Any] = field(default_factory=dict)


class Result(NamedTuple):
    """The mean loss, (B,) what the attack raises or None where there is none, and what is to be remembered."""

    loss: Any
    objective: Array | None = None
    memory: Mapping[str, Any] = {}


# --- The vocabulary --------------------------------------------------------------------------------------------------


def unit(v: Array) -> Array:
    """Rows of length 1."""
    return v / np.sqrt((v * v).sum(-1, keepdims=True))


def log_softmax(logits: Array) -> Array:
    """(..., C)."""
    safe = logits - logits.real.max(-1, keepdims=True)
    return safe - np.log(np.exp(safe).sum(-1, keepdims=True))


def softmax(logits: Array) -> Array:
    """(..., C)."""
    return np.exp(log_softmax(logits))


def at(values: Array, y: Array) -> Array:
    """(B,) the label's of (B, C)."""
    return values[np.arange(len(y)), y]


def ce(logits: Array, y: Array) -> Array:
    """(B,) -log p_y."""
    return -at(log_softmax(logits), y)


def kl(p: Array, q: Array, temperature: Any = 1.0) -> Array:
    """(B,) KL(p || q) = sum_c p_c (log p_c - log q_c), from logits."""
    log_p, log_q = log_softmax(p / temperature), log_softmax(q / temperature)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def entropy(logits: Array) -> Array:
    """(B,) -sum_c p_c log p_c."""
    log_p = log_softmax(logits)
    return -(np.exp(log_p) * log_p).sum(-1)


def sigmoid(v: Array) -> Array:
    """1 / (1 + e^-v)."""
    return 1 / (1 + np.exp(-v))


def pairwise_cos(a: Array, b: Array) -> Array:
    """(B,) cosine of row and row."""
    return (unit(a) * unit(b)).sum(-1)


# --- Fine-tuning and prompt tuning without a teacher -----------------------------------------------------------------


def clean(w: World) -> Result:
    """CE(S(x), y)."""
    return Result(ce(w.S(x), w.y).mean())


def adversarial_ce(w: World) -> Result:
    """CE(S(x'), y), x' raising it (Madry et al. 2018, arXiv:1706.06083). TeCoA (arXiv:2212.07016), AdvVP, AdvTP,
    AdvVLP, AdvMaPLe (arXiv:2403.14774), APT (arXiv:2403.01849) and MoAPT (arXiv:2505.17509) differ in what learns."""
    adversarial = ce(w.S(xa), w.y)
    return Result(adversarial.mean(), adversarial)


def half_adversarial_ce(w: World, batch: str) -> Result:
    """MAPT's `adv_half`: of N images the first floor(N / 2) stay clean, and the others are attacked."""
    n = len(w.y) // 2
    adversarial = ce(w.S(xa), w.y)[n:]
    return Result(np.concatenate([ce(w.S(x), w.y)[:n], adversarial]).mean(), adversarial)


def trades(w: World, beta: float = 6.0) -> Result:
    """CE(S(x), y) + beta KL(S(x) || S(x')), the clean side learning too (Zhang et al. 2019, arXiv:1901.08573)."""
    apart = kl(w.S(x), w.S(xa))
    return Result((ce(w.S(x), w.y) + beta * apart).mean(), apart)


def fap(w: World, weight: float = 1.5) -> Result:
    """CE(S(x), y) + lambda KL(S(x) || S(x')) (cos(z(x), z(x')) + 1), nothing stopped; x' raises the KL (Zhou et al.
    2024, arXiv:2403.14774)."""
    S, apart = w.S, kl(w.S(x), w.S(xa))
    return Result((ce(S(x), w.y) + weight * apart * (pairwise_cos(S.phi(x), S.phi(xa)) + 1)).mean(), apart)


# --- Held to the model before fine-tuning ----------------------------------------------------------------------------


def fare(w: World, form: str = "l2") -> Result:
    """FARE, the squared distance of features that are not normalised, in attack and loss (Schlarmann et al. 2024,
    arXiv:2402.12336); Sim-CLIP's cosine, as released against the original and as written against the student's own
    clean feature, each side stopped in turn (Hossain and Imteaj 2024, arXiv:2407.14971; its released attack is l2)."""
    S, original = w.S, w.T["original"]
    distance = ((S.phi(xa) - original.phi(x)) ** 2).sum(-1)
    if form == "l2":
        return Result(distance.mean(), distance)
    if form == "cosine":
        return Result((1 - pairwise_cos(S.phi(xa), original.phi(x))).mean(), distance)
    one, other = pairwise_cos(S.phi(xa), stop(S.phi(x))), pairwise_cos(S.phi(x), stop(S.phi(xa)))
    return Result((1 - one / 2 - other / 2).mean(), distance)


def pmg_aft(w: World, original_weight: float = 1.0, clean_weight: float = 1.0) -> Result:
    """CE(S(x'), y) + KL(T(x') || S(x')) + KL(S(x) || S(x')), T the original (Wang et al. 2024, arXiv:2401.04350)."""
    S, T = w.S, w.T["original"]
    adversarial = ce(S(xa), w.y)
    loss = adversarial + original_weight * kl(T(xa), S(xa)) + clean_weight * kl(S(x), S(xa))
    return Result(loss.mean(), adversarial)


def agft(w: World, scale: float = 1.8, ratio: float = 0.4) -> Result:
    """-sum_c q_c log p_c(x'), q the original's prediction of the clean image with its logits times r s, p the student's
    with s, in attack and loss (arXiv:2603.29410); here less q's entropy, a constant."""
    q, log_p = softmax(scale * ratio * w.T["original"](x)), log_softmax(scale * w.S(xa))
    soft_ce = -(q * log_p).sum(-1) - entropy(scale * ratio * w.T["original"](x))
    return Result(soft_ce.mean(), soft_ce)


def hpt_gpd(w: World, warmup: float = 0.2, view: str = xa, ce_weight: float = 0.0) -> Result:
    """KL(T(x') || S(x')), T a proxy of another architecture, after a warm-up KL(T0(x) || S(x')) that is anchored in the
    original's clean predictions; x' raises CE in both (arXiv:2601.12865; in its released code the student sees x' in
    both stages and the two teachers' lines differ in the image; that the first teacher is the original is inferred)."""
    S, proxy = w.S, w.T["proxy"]
    if w.progress < warmup:
        anchor = w.T.get("original", proxy)
        return Result(kl(anchor(x), S(xa)).mean(), ce(S(xa), w.y))
    adversarial = ce(S(xa), w.y)
    return Result((kl(proxy(view), S(xa)) + ce_weight * adversarial).mean(), adversarial)


def capt(
    w: World,
    weight: float = 1.0,
    balance: str = "confidence",
    share: float = 0.5,
    direction: str = "student-first",
    ce_view: str = x,
    objective: str = "ce",
) -> Result:
    """CE + lambda [(1 - a) KL(S(x') || S(x)) + a KL(S(x') || T(x))], T the frozen CLIP (Yang et al. 2024,
    arXiv:2405.11154; a, lambda and the first KL are inferred)."""
    S, T, y = w.S, w.T["original"], w.y
    trust = at(softmax(T(x)), y), at(softmax(S(x)), y)
    a = stop(trust[0] / (trust[0] + trust[1])) if balance == "confidence" else share
    apart = kl if direction == "student-first" else lambda p, q: kl(q, p)
    label = {x: ce(S(x), y), xa: ce(S(xa), y), "both": (ce(S(x), y) + ce(S(xa), y)) / 2}[ce_view]
    loss = label + weight * ((1 - a) * apart(S(xa), S(x)) + a * apart(S(xa), T(x)))
    return Result(loss.mean(), ce(S(xa), y) if objective == "ce" else kl(S(x), S(xa)))


# --- One teacher -----------------------------------------------------------------------------------------------------


def ard(w: World, temperature: float = 30.0, alpha: float = 1.0) -> Result:
    """alpha t^2 KL(T(x) || S(x'); t) + (1 - alpha) CE(S(x), y), x' raising CE (Goldblum et al. 2020,
    arXiv:1905.09747)."""
    S, T = w.S, w.T["robust"]
    soft = temperature**2 * kl(T(x), S(xa), temperature)
    return Result((alpha * soft + (1 - alpha) * ce(S(x), w.y)).mean(), ce(S(xa), w.y))


def rslad(w: World, adversarial_weight: float = 5 / 6, clean_weight: float = 1 / 6) -> Result:
    """5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)), x' raising the former (Zi et al. 2021, arXiv:2108.07969)."""
    S, T = w.S, w.T["robust"]
    adversarial = kl(T(x), S(xa))
    return Result((adversarial_weight * adversarial + clean_weight * kl(T(x), S(x))).mean(), adversarial)


def iad(w: World, alpha: float = 1.0, beta: float = 0.1, begin: float = 0.3, temperature: float = 1.0) -> Result:
    """IAD-I: alpha [t^2 KL(T(x) || S(x'); t) + (1 - p^beta) KL(S(x) || S(x'))] + (1 - alpha) CE(S(x), y), p the
    probability p_T(y | x'), without the self term before `begin` (Zhu et al. 2022, arXiv:2106.04928; the released
    IAD-I.py)."""
    S, T = w.S, w.T["robust"]
    trust = at(softmax(T(xa)), w.y) ** beta if w.progress >= begin else 1.0
    distilled = temperature**2 * kl(T(x), S(xa), temperature) + (1 - trust) * kl(S(x), S(xa))
    return Result((alpha * distilled + (1 - alpha) * ce(S(x), w.y)).mean(), ce(S(xa), w.y))


def iad_two(
    w: World,
    robust_weight: float = 0.5,
    clean_weight: float = 0.25,
    beta: float = 0.1,
    begin: float = 0.2,
    temperature: float = 1.0,
) -> Result:
    """IAD-II: a1 t^2 [p^beta KL(T(x') || S(x'); t) + (1 - p^beta) KL(S(x) || S(x'))] + a2 t^2 KL(N(x') || S(x'); t) +
    (1 - a1 - a2) CE(S(x'), y), N the naturally trained teacher (the released IAD-II.py). Unlike IAD-I's, its self term
    is multiplied by t^2, but not softened either."""
    S, T, N = w.S, w.T["robust"], w.T["clean"]
    trust = at(softmax(T(xa)), w.y) ** beta if w.progress >= begin else 1.0
    adversarial, t2 = ce(S(xa), w.y), temperature**2
    introspective = trust * kl(T(xa), S(xa), temperature) + (1 - trust) * kl(S(x), S(xa))
    loss = robust_weight * t2 * introspective + clean_weight * t2 * kl(N(xa), S(xa), temperature)
    return Result((loss + (1 - robust_weight - clean_weight) * adversarial).mean(), adversarial)


def adaad(w: World, alpha: float = 1.0) -> Result:
    """alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x)); x' raises the former by what both models do with it
    (Huang et al., CVPR 2023)."""
    S, T = w.S, w.T["robust"]
    apart = kl(T(xa), S(xa))
    return Result((alpha * apart + (1 - alpha) * kl(T(x), S(x))).mean(), apart)


def apd(
    w: World,
    beta: float = 1.0,
    feedback_form: str = "additive",
    feedback_detach: bool = True,
    student_kl: str = "teacher-first",
    feedback_kl: str = "student-first",
    student_ce_weight: float = 0.0,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    update_order: str = "simultaneous",
) -> Result:
    """The student's KL(T(x) || S(x')), and of a teacher that learns CE(T(x), y) + beta KL(S(x') || T(x)): no gradient
    crosses over; x' raises CE(S(x'), y) (Luo et al. 2024, arXiv:2411.15244; details are inferred)."""
    S, T, y = w.S, w.T["clean"], w.y
    factor = temperature**2 if temperature_squared else 1.0

    def soft(student: Array, teacher: Array, direction: str) -> Array:
        first, second = (teacher, student) if direction == "teacher-first" else (student, teacher)
        return factor * kl(first, second, temperature)

    student = soft(S(xa), stop(T(x)), student_kl) + student_ce_weight * ce(S(xa), y)
    feedback = soft(stop(S(xa)) if feedback_detach else S(xa), T(x), feedback_kl)
    teacher = (1 - beta if feedback_form == "convex" else 1) * ce(T(x), y) + beta * feedback
    if "clean" not in w.learns:
        teacher = 0 * teacher
    both = student + teacher if update_order == "simultaneous" else (student, teacher)[w.phase]
    return Result(both.mean(), ce(S(xa), y))


# --- Several teachers ------------------------------------------------------------------------------------------------

DROPS = (215 / 300, 260 / 300, 285 / 300)


def relative(
    w: World, losses: Mapping[str, Array], rate: float, power: float, drops: Sequence[float]
) -> tuple[dict[str, float], dict[str, Any]]:
    """MTARD's weights of this batch, and its memory for the next: r_k = (L_k / L_k at first)^power, and each weight
    goes a step towards r_k / sum r. Rates are a tenth after each drop. (B-MTARD's code also keeps them from falling
    below 0 and lets them add up to 1, which they do anyway.)"""
    means = {k: stop(loss.mean()) for k, loss in losses.items()}
    weights: dict[str, float] = w.memory.get("weights", {k: 1 / len(means) for k in means})
    first = w.memory.get("first", means)
    r = {k: (means[k] / first[k]) ** power for k in means}
    rate *= 0.1 ** sum(w.progress >= drop for drop in drops)
    moved = {k: weights[k] - rate * (weights[k] - r[k] / sum(r.values())) for k in means}
    return weights, {"first": first, "weights": moved}


def balanced(
    w: World, softened: Mapping[str, Array], rate: float, highest: float, drops: Sequence[float]
) -> dict[str, float]:
    """B-MTARD's temperatures after this batch, from softened logits: of two teachers the one whose predictions have
    more entropy cools by a step, and the other warms by as much."""
    now = temperatures(w)
    (one, a), (other, b) = ((k, stop(entropy(logits).mean())) for k, logits in softened.items())
    rate *= 0.1 ** sum(w.progress >= drop for drop in drops)
    moved = {one: now[one] - rate * np.sign(a / b - 1), other: now[other] - rate * np.sign(b / a - 1)}
    return {k: min(max(t, 1.0), highest) for k, t in moved.items()}


def temperatures(w: World) -> dict[str, float]:
    """B-MTARD's temperatures of this batch."""
    found: dict[str, float] = w.memory.get("temperatures", {"clean": 1.0, "robust": 1.0})
    return found


def tempered_kl(teacher: Array, student: Array, temperature: float) -> Array:
    """(B,) KL whose first side alone is softened."""
    return kl(teacher / temperature, student)


def mtard(w: World, weight_rate: float = 0.025, loss_power: float = 1.0, drops: Sequence[float] = DROPS) -> Result:
    """w_adv KL(T_adv(x') || S(x')) + w_nat KL(T_nat(x) || S(x)), x' raising CE (Zhao et al., ECCV 2022; the
    released MTARD)."""
    S, T = w.S, w.T
    losses = {"clean": kl(T["clean"](x), S(x)), "robust": kl(T["robust"](xa), S(xa))}
    weights, memory = relative(w, losses, weight_rate, loss_power, drops)
    return Result(sum(weights[k] * losses[k] for k in losses).mean(), ce(S(xa), w.y), memory)


def b_mtard(
    w: World,
    weight_rate: float = 0.025,
    loss_power: float = 1.0,
    drops: Sequence[float] = DROPS,
    temperature_rate: float = 0.001,
    temperature_max: float = 10.0,
) -> Result:
    """MTARD, the teachers' logits divided by temperatures that even out their entropies; the student's are not (Zhao et
    al. 2023, arXiv:2306.16170; the released MTARD-extension)."""
    S, T, t = w.S, w.T, temperatures(w)
    losses = {
        "clean": tempered_kl(T["clean"](x), S(x), t["clean"]),
        "robust": tempered_kl(T["robust"](xa), S(xa), t["robust"]),
    }
    weights, memory = relative(w, losses, weight_rate, loss_power, drops)
    softened = {"clean": T["clean"](x) / t["clean"], "robust": T["robust"](xa) / t["robust"]}
    memory["temperatures"] = balanced(w, softened, temperature_rate, temperature_max, drops)
    return Result(sum(weights[k] * losses[k] for k in losses).mean(), ce(S(xa), w.y), memory)


def ciard(
    w: World,
    weighting: str = "fixed",
    push: float = 1.0,
    push_temperature: float = 5.0,
    push_cap: float | None = None,
    teacher_start: float = 50 / 300,
    temperature_rate: float = 0.001,
    temperature_max: float = 10.0,
    weight_rate: float = 0.025,
    loss_power: float = 1.0,
    drops: Sequence[float] = DROPS,
) -> Result:
    """L1 + L2 - c L3: B-MTARD's two losses, and a push off what the clean teacher says of the adversarial images M that
    mislead it, L3 = mean over M of KL(T_nat(x') || S(x') / 5), c = 10^(min floor lg L1, L2 - floor lg L3). After a
    while the robust teacher learns CE(T_adv(x'), y) (arXiv:2509.12633; the released CIARD)."""
    S, T, t, y = w.S, w.T, temperatures(w), w.y
    robust = stop(T["robust"](xa))
    losses = {"clean": tempered_kl(T["clean"](x), S(x), t["clean"]), "robust": tempered_kl(robust, S(xa), t["robust"])}
    weights, memory = relative(w, losses, weight_rate, loss_power, drops)
    softened = {"clean": T["clean"](x) / t["clean"], "robust": robust / t["robust"]}
    memory["temperatures"] = balanced(w, softened, temperature_rate, temperature_max, drops)
    if weighting == "fixed":
        weights = {"clean": 1.0, "robust": 1.0}
    loss = sum(weights[k] * losses[k].mean() for k in losses)
    misled = stop(T["clean"](xa)).argmax(-1) != y
    if push and misled.any():
        away = kl(T["clean"](xa), S(xa) / push_temperature)[misled]
        if push_cap is not None:
            away = np.where(away.real > push_cap, push_cap, away)
        order = {k: np.floor(np.log10(stop(v.mean()))) for k, v in {**losses, "push": away}.items()}
        loss = loss - push * 10 ** (min(order["clean"], order["robust"]) - order["push"]) * away.mean()
    if "robust" in w.learns and w.progress >= teacher_start:
        loss = loss + ce(T["robust"](xa), y).mean()
    return Result(loss, ce(S(xa), y), memory)


def mmt_ard_released(w: World) -> Result:
    """The released code of MMT-ARD (arXiv:2511.17448): 1 / (B C) sum_i sum_c (50 cos_adv,i k_adv,ic + 5 cos_nat,i
    k_nat,ic), where k_ic are the summands of KL(T_adv(x') || S(x')) and KL(T_nat(x) || S(x)), and cos is the teacher's
    raw cosine of image and label: negative, it turns a sample round. x' raises KL(T_nat(x) || S(x'))."""
    S, N, R, y = w.S, w.T["clean"], w.T["robust"], w.y

    def summands(p: Array, q: Array) -> Array:
        return softmax(p) * (log_softmax(p) - log_softmax(q))

    adversarial = at(R.cos(xa), y)[:, None] * summands(R(xa), S(xa))
    natural = at(N.cos(x), y)[:, None] * summands(N(x), S(x))
    return Result((50 * adversarial + 5 * natural).mean(), kl(N(x), S(xa)))


def mmt_ard(
    w: World,
    weighting: str = "sigmoid",
    clean_weight: float = 1.0,
    robust_weight: float = 1.0,
    weights: Mapping[str, float] = MappingProxyType({}),
    views: Mapping[str, str] = MappingProxyType({}),
    student_views: Mapping[str, str] = MappingProxyType({}),
    level: str = "logits",
    gate: str = "teachers",
    objective: str = "clean-kl",
    objective_teacher: str = "clean",
    reduction: str = "batch-mean",
    temperature: float = 1.0,
    consistency: float = 0.0,
    consistency_form: str = "cosine",
    **how: Any,
) -> Result:
    """sum_k weight_k share_k mean_m D_km, teachers k and what of them is compared m (`level`), or, where modalities are
    gated, sum_k weight_k share_k sum_m share_km D_km; and the consistency of image and text (arXiv:2511.17448, whose
    formulas are not public: all but the released code is inferred)."""
    S, y = w.S, w.y
    weight = {k: {"clean": clean_weight, "robust": robust_weight, **weights}.get(k, 1.0) for k in w.T}
    teachers = [k for k in w.T if weight[k]]
    view = {k: views.get(k, xa if k == "robust" else x) for k in teachers}
    heat = temperatures(w) if weighting == "entropy-temperature" else dict.fromkeys(teachers, 1.0)

    def distance(p: Array, q: Array, k: str) -> Array:
        divided = kl(p / heat[k], q, temperature)
        return divided / p.shape[-1] if reduction == "element-mean" else divided

    # Of each teacher, what is compared, and how sure it is of that.
    compared: dict[str, list[Array]] = {}
    sure: dict[str, list[Array]] = {}
    for k in teachers:
        T, here, there = w.T[k], view[k], student_views.get(k, view[k])
        classes = distance(T(here), S(there), k), at(softmax(T(here)), y)
        images = distance(T(here).T[y], S(there).T[y], k), (softmax(T(here).T[y]) * (y[:, None] == y)).sum(-1)
        features = 1 - pairwise_cos(T.phi(here), S.phi(there)), (1 + at(T.cos(here), y)) / 2
        modalities = {
            "logits": [classes],
            "embedding": [features],
            "logits-embedding": [classes, features],
            "contrastive": [classes, images],
        }[level]
        compared[k], sure[k] = (list(part) for part in zip(*modalities, strict=True))
    losses = {k: sum(compared[k]) / len(compared[k]) for k in teachers}

    memory: dict[str, Any] = {}
    trust = {k: at(softmax(w.T[k](view[k])), y) for k in teachers}
    split = {"sigmoid": sigmoid_shares, "probability": dict}.get(weighting)
    shares: Mapping[str, Any] = dict.fromkeys(teachers, 1.0)
    if split is not None and gate != "modalities":
        shares = split(trust, **how)
    elif weighting == "cosine":
        shares = cosine_shares({k: at(w.T[k].cos(view[k]), y) for k in teachers}, **how)
    elif weighting == "saad":
        shares = saad_shares({k: w.T[k](view[k]) for k in teachers}, view, **how)
    elif weighting in ("relative-loss", "entropy-temperature"):
        shares, memory = relative(w, losses, how["weight_rate"], how.get("loss_power", 1.0), how.get("drops", DROPS))
    if weighting == "entropy-temperature":
        softened = {k: w.T[k](view[k]) / heat[k] for k in teachers}
        memory["temperatures"] = balanced(w, softened, how["temperature_rate"], how["temperature_max"], how["drops"])

    loss = 0.0
    for k in teachers:
        portion = losses[k]
        if split is not None and gate != "teachers":
            of = split(dict(enumerate(sure[k])), **how)
            portion = sum(of[m] * compared[k][m] for m in of)
        loss = loss + weight[k] * shares[k] * portion
    if consistency:
        image_and_text = 1 - at(S.cos(xa), y) if consistency_form == "cosine" else kl(S(x), S(xa))
        loss = loss + consistency * image_and_text
    raised = ce(S(xa), y) if objective == "ce" else kl(w.T[objective_teacher](x), S(xa))
    return Result(np.mean(loss), raised, memory)


def sigmoid_shares(
    c: Mapping[Any, Array], slope: float = 1.0, tau: float = 1.0, midpoint: float | None = None, favour: str = "easy"
) -> dict[Any, Array]:
    """sigmoid((c_a - c_b) slope / tau) of two, 1 / sum_b exp(-(c_a - c_b) slope / tau) of any number; with a midpoint m
    each its own sigmoid((c - m) slope / tau). The other way round to favour the hard."""
    s = slope / tau * {"easy": 1, "hard": -1}[favour]
    if midpoint is not None:
        return {a: sigmoid(s * (c[a] - midpoint)) for a in c}
    if len(c) == 2:
        (a, first), (b, second) = c.items()
        return {a: sigmoid(s * (first - second)), b: sigmoid(s * (second - first))}
    return {a: 1 / sum(np.exp(-s * (c[a] - c[b])) for b in c) for a in c}


def cosine_shares(cosines: Mapping[str, Array], clamp_min: float | None = None) -> dict[str, Array]:
    """The cosine of the teacher's image and the label, bounded below where that is asked for."""
    return {k: np.maximum(v, -1.0 if clamp_min is None else clamp_min) for k, v in cosines.items()}


def saad_shares(
    logits: Mapping[str, Array], view: Mapping[str, str], entropy_scale: float = 5.0, entropy_temperature: float = 1.0
) -> dict[str, Array]:
    """On adversarial images w_i = 5 (H_i - min H), H the teacher's entropy; on clean ones 1 - (w_i - min w) / (max w -
    min w + 1e-8), of several teachers' w their mean (arXiv:2512.10275; several are inferred)."""
    w = {}
    for k in (k for k in logits if view[k] == xa):
        h = entropy(logits[k] / entropy_temperature)
        w[k] = entropy_scale * (h - h.min())
    spread = [(v - v.min()) / (v.max() - v.min() + 1e-8) for v in w.values()]
    return {k: w.get(k, 1 - sum(spread) / len(spread)) for k in logits}
