"""The evaluation card: what one evaluation says, with what it rests on, for people (Markdown) and programs (JSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdistill.engine.count import Count
from advdistill.engine.outcomes import Column, Evaluation, Outcome
from advdistill.errors import DataError

if TYPE_CHECKING:
    from advdistill.engine.indicator import Indicator

EDGE = 1e-3
"""A perturbation this close to the radius, relative to it, lies on the ball's boundary."""

RAISED = {
    "steps not converged": "steps: more samples broken, or others",
    "more steps help the defender": "steps: fewer samples broken",
    "restarts not converged": "restarts: more samples broken",
    "a larger radius helps the defender": "radius: samples that withstand only then",
}
"""Doubts about convergence -> what was raised, by a probe twofold, and what is counted."""

Ball = tuple[str, str, float]
"""A scope, a norm, a radius: attacks in one ball can be asked for their worst case together."""


def distance(norm: str, size: float) -> str:
    """A size in the norm's own unit: "linf 8/255", "l2 0.5"."""
    return f"{norm} {255 * size:.4g}/255" if norm == "linf" else f"{norm} {size:.4g}"


def percent(share: float) -> str:
    """A share, as "41.2 %"."""
    return f"{100 * share:.1f} %"


def share(right: Tensor, sources: Tensor) -> dict[str, Any]:
    """How many are right, with Wilson's 95 % interval; of as many samples as they are worth, where they share sources.

    Args:
        right: (N,) bool. sources: (N, k) long, as `Outcome.sources`.
    """
    count = Count.of(right, sources)
    return {"hits": count.hits, "total": count.total, "accuracy": count.share, **count.interval()}


def ends(said: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of what `share` said, by whichever name."""
    low, high = said["sources95"] if "sources95" in said else said["wilson95"]
    return low, high


def counted(said: Mapping[str, Any]) -> str:
    """What `share` said, in percent: "41.2 % [36.5–46.1]"."""
    low, high = ends(said)
    return f"{percent(said['accuracy'])} [{100 * low:.1f}–{100 * high:.1f}]"


def ball(column: Column) -> Ball:
    """Where an attack's column was measured."""
    threat = column.statement["threat"]
    return column.scope, threat["norm"], threat["eps"]


def balls(columns: Iterable[Column]) -> dict[Ball, list[Column]]:
    """The attacks among `columns`, by scope and ball, in their order.

    A worst case over several radii would be that of the largest: an ε curve would end it at 0.
    """
    found: dict[Ball, list[Column]] = {}
    for column in columns:
        if column.attacked:
            found.setdefault(ball(column), []).append(column)
    return found


def worst_heading(ball: Ball, attacks: Sequence[Column]) -> str:
    """What the worst case of some attacks in one ball is called: "zero-shot: worst of 2, linf 8/255"."""
    scope, norm, eps = ball
    heading = f"worst of {len(attacks)}, {distance(norm, eps)}"
    return f"{scope}: {heading}" if scope else heading


def worst(evaluation: Evaluation, columns: Sequence[Column]) -> tuple[Tensor, Tensor]:
    """`Evaluation.worst` over some columns of one scope. Raises DataError where they looked at different samples."""
    return replace(evaluation, columns=tuple(columns)).worst(columns[0].scope)


def attacker(statement: Mapping[str, Any]) -> str:
    """Who attacked, in one sentence: what he knows, may ask and wants, and how far he may go."""
    if statement["attack"] is None:
        return "nobody: images as they are"
    who, source, threat = statement["attacker"], statement["source"]["model"], statement["threat"]
    parts = []
    for state, verb in (("known", "knows"), ("guessed", "guesses"), ("unknown", "does not know")):
        if what := [name for name, said in who.items() if said == state and name not in ("asks", "goal")]:
            parts.append(f"{verb} {', '.join(what)}")
    parts += [f"makes the images on {source}"] if source != "self" else []
    height, width = statement["resolution"]
    reach = f"{distance(threat['norm'], threat['eps'])} at {height}x{width}"
    return f"{statement['knowledge']}: " + "; ".join([*parts, f"asks {who['asks']}", who["goal"], reach])


def settings(block: Mapping[str, Any]) -> str:
    """An attack's settings in a line: "eot (attack pgd (steps 20, restarts 2), draws 20)"."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return settings(value)
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(said, value)) + "]"
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    inner = ", ".join(
        f"{key} {said(value)}" for key, value in block.items() if key != "use" and value not in (None, "")
    )
    return f"{attack_name(block)} ({inner})" if inner else attack_name(block)


def attack_name(block: Mapping[str, Any]) -> str:
    """What an attack's block names: with its distribution where that is another one's."""
    return str(block["use"]).removeprefix("advdistill:")


def idle(column: Column) -> Tensor:
    """(N,) bool: samples that withstood an attack which did nothing to them: their image is the clean one, or, where
    the attacker climbs this very model's gradients, the cross-entropy did not rise."""
    outcome = column.outcome
    nothing = outcome.size == 0
    if column.statement["knowledge"] == "white-box":
        nothing = nothing | ~(outcome.rise > 0)
    return outcome.clean & outcome.right & nothing


def unmeasured(column: Column) -> str:
    """Why an attack's number must not be called robust accuracy; "" where it may."""
    outcome = column.outcome
    if not outcome.clean.any():
        return ""  # nothing was left to attack: 0 is 0
    tried = outcome[outcome.attacked & outcome.clean]
    if not len(tried):
        return "no pass was spent"
    if not (tried.size > 0).any():
        return "no pixel was changed"
    risen = tried.rise[torch.isfinite(tried.rise)]
    if not (tried.rise == torch.inf).any() and not (len(risen) and risen.double().mean() > 0):
        return "the loss did not rise"
    held = int((outcome.clean & outcome.right).sum())
    if 2 * int(idle(column).sum()) > held:
        return f"{int(idle(column).sum())} of the {held} samples that withstood were not moved"
    return ""


def card(evaluation: Evaluation, indicators: Sequence[Indicator] = ()) -> dict[str, Any]:
    """Everything that is to be known about an evaluation before its numbers are quoted, as plain data (JSON-able).

    Accuracies are over all drawn samples, with intervals as `share` says; what an attack spent and reached is over the
    samples that it was run on.
    """
    doubts = [each.to_json() for each in indicators]
    return {
        "subject": evaluation.subject,
        "headline": _headline(evaluation, doubts),
        "facts": dict(evaluation.facts),
        "columns": [_column(column) for column in evaluation.columns],
        "worst": _worst(evaluation),
        "base_to_new": {name: list(values) for name, values in evaluation.base_to_new().items()},
        "nearest": _nearest(evaluation.columns),
        "curves": curves(evaluation),
        "indicators": doubts,
    }


def _column(column: Column) -> dict[str, Any]:
    statement = column.statement
    said = {
        "heading": column.heading,
        "knowledge": statement["knowledge"],
        "attacker": attacker(statement),
        **share(column.outcome.right, column.outcome.sources),
        "statement": dict(statement),
    }
    return said | (_effort(column) if column.attacked else {})


def _effort(column: Column) -> dict[str, Any]:
    """What an attack spent on the samples that it was run on, and what it reached."""
    outcome, (_, _, eps) = column.outcome, ball(column)
    tried = outcome[outcome.attacked]
    broken = outcome.clean & ~outcome.right
    return {
        "unmeasured": unmeasured(column),
        "idle": int(idle(column).sum()),
        "attacked": len(tried),
        "passes": {name: _mean_and_max(getattr(tried, name)) for name in ("forwards", "backwards", "blank")},
        "settings": settings(column.statement["attack"]),
        "stages": [
            {"name": name, "broke": int((outcome.stage == number).sum())} for number, name in enumerate(column.stages)
        ],
        "boundary": _number((tried.size >= eps * (1 - EDGE)).double().mean()),
        "max_size": _number(tried.size.max()) if len(tried) else None,
        "mean_rise": _number(tried.rise[torch.isfinite(tried.rise)].double().mean()),
        "certain": int((tried.certain & tried.clean).sum()),
        "nearest": _quantiles(outcome),
        "broken": int(broken.sum()),
        "broken_as_png": int((broken & ~outcome.rounded).sum()),
        "disputed": int((outcome.claimed != outcome.right).sum()),
    }


def _mean_and_max(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.double().mean()), "max": int(values.max())} if len(values) else {"mean": 0.0, "max": 0}


def _number(value: Tensor) -> float | None:
    """None for what is not finite: JSON has no word for it."""
    return float(value) if torch.isfinite(value) else None


def _quantiles(outcome: Outcome) -> dict[str, float | None]:
    """Sizes of the smallest perturbation seen to mislead, over the samples that are right when clean; None: the
    quantile lies among those for which none was seen."""
    sizes = outcome.nearest[outcome.clean].double().sort().values
    levels = (0.1, 0.5, 0.9)
    return {f"{100 * q:.0f} %": _number(sizes[math.ceil(q * len(sizes)) - 1]) for q in levels} if len(sizes) else {}


def _nearest(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Over all attacks in one scope and norm that looked at the same samples: the smallest perturbation known."""
    groups: dict[tuple[str, str], list[Column]] = {}
    for column in columns:
        if column.attacked:
            scope, norm, _ = ball(column)
            groups.setdefault((scope, norm), []).append(column)
    said = []
    for (scope, norm), found in groups.items():
        first = found[0].outcome
        same = [c.outcome for c in found if torch.equal(c.outcome.indices, first.indices)]
        nearest = torch.stack([outcome.nearest for outcome in same]).amin(0)
        said.append({"scope": scope, "norm": norm, "quantiles": _quantiles(replace(first, nearest=nearest))})
    return said


def _worst(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Per scope and ball: right about every image of all attacks; left out where these looked at different samples."""
    said = []
    for (scope, norm, eps), columns in balls(evaluation.columns).items():
        try:
            _, right = worst(evaluation, columns)
        except DataError:
            continue
        names = [column.name for column in columns]
        found = share(right, columns[0].outcome.sources)
        said.append({"scope": scope, "norm": norm, "eps": eps, "attacks": names, **found})
    return said


def curves(evaluation: Evaluation) -> list[dict[str, Any]]:
    """ε curves: attacks whose statements differ in the radius alone, from ε = 0, where accuracy is clean accuracy.

    Returns:
        One dictionary each: `attack`, `scope`, `norm`, `points` (by `eps`, accuracy with interval), `zero` whether
        nothing withstands the largest radius, and what is to be `said`.
    """
    groups: dict[str, list[Column]] = {}
    for column in evaluation.columns:
        if column.attacked:
            alike = {key: value for key, value in column.statement.items() if key not in ("name", "key", "threat")}
            group = json.dumps([column.scope, column.statement["threat"]["norm"], alike], sort_keys=True)
            groups.setdefault(group, []).append(column)
    said = []
    for found in groups.values():
        rights = {ball(column)[2]: column.outcome.right for column in found}
        if len(rights) < 2:
            continue
        outcome = found[0].outcome
        rights.setdefault(0.0, outcome.clean)
        points = {eps: share(right, outcome.sources) for eps, right in rights.items()}
        scope, norm, _ = ball(found[0])
        widest = max(points)
        last, reach = points[widest], distance(norm, widest)
        words = (
            f"nothing withstands {reach}" if last["hits"] == 0 else f"does not reach 0: {counted(last)} hold at {reach}"
        )
        said.append(
            {
                "attack": attack_name(found[0].statement["attack"]),
                "scope": scope,
                "norm": norm,
                "points": [{"eps": eps, **points[eps]} for eps in sorted(points)],
                "zero": last["hits"] == 0,
                "said": words,
            }
        )
    return said


def _headline(evaluation: Evaluation, doubts: Sequence[Mapping[str, Any]]) -> str:
    """One or two sentences; the word robust only where something was measured by an attacker who knows everything."""
    groups = balls(evaluation.columns)
    if not groups:
        shares = [
            (column.heading, share(column.outcome.right, column.outcome.sources)) for column in evaluation.columns
        ]
        measured = "; ".join(f"{heading} {counted(said)}" for heading, said in shares)
        return f"Nothing was attacked. {measured or 'Nothing was measured'}."
    (scope, norm, eps), columns = max(groups.items(), key=lambda group: len(group[1]))
    reach = distance(norm, eps)
    reasons = {column.heading: why for column in columns if (why := unmeasured(column))}
    told = "; ".join(f"{heading}: {why}" for heading, why in reasons.items())
    if len(reasons) == len(columns):
        return f"Not measured within {reach}: the attack did nothing ({told})."
    try:
        # What an attack broke counts, however little it did to the others.
        _, right = worst(evaluation, columns)
        unmoved = torch.stack([idle(column) for column in columns]).all(0)
    except DataError:
        columns = [column for column in columns if column.heading not in reasons][:1]
        right, unmoved = columns[0].outcome.right, idle(columns[0])
    held = share(right, columns[0].outcome.sources)
    against = columns[0].heading if len(columns) == 1 else f"the worst case of {len(columns)} attacks"
    where = f"within {reach}, against {against}, of {held['total']:,} samples" + (f" ({scope})" if scope else "")
    if any(c.statement["knowledge"] == "white-box" and c.heading not in reasons for c in columns):
        text = f"Robust accuracy {counted(held)} {where}"
    else:
        text = (
            f"{counted(held)} withstand {where}: no attacker who knows everything did anything, this is not robustness"
        )
    clean = columns[0].outcome.clean
    text += f"; clean {percent(Count.of(clean).share)}."
    if lazy := int(unmoved.sum()):
        text += f" Not measured: the attack did nothing on {lazy} of those that withstood."
    if reasons:
        text += f" Some attacks did nothing ({told})."
    flags = list(dict.fromkeys(each["name"] for each in doubts if each["verdict"] == "flag"))
    return text + (f" Doubtful: {', '.join(flags)}." if flags else "")


def markdown(card: Mapping[str, Any]) -> str:
    """The card of `card` as Markdown; ends in a newline."""
    columns = card["columns"]
    attacks = [column for column in columns if "passes" in column]
    lines = [f"# {_cell(card['subject'])}", "", f"**{card['headline']}**", ""]
    lines += [*_about(card["facts"]), "", "## What was found", ""]
    rows = [[c["heading"], counted(c), f"{c['total']:,}", c["attacker"]] for c in columns]
    rows += [
        [
            f"worst of {len(each['attacks'])}" + (f" ({each['scope']})" if each["scope"] else ""),
            counted(each),
            f"{each['total']:,}",
            f"every one of {', '.join(each['attacks'])}; {distance(each['norm'], each['eps'])}",
        ]
        for each in card["worst"]
        if len(each["attacks"]) > 1
    ]
    lines += _table(["", "right [95 %]", "of", "who attacked"], rows)
    if any("sources95" in column for column in columns):
        lines += ["", "Images share the pictures that they are made of; intervals know it."]
    for name, (base, new, mean) in card["base_to_new"].items():
        lines += ["", f"{name}: base {percent(base)}, new {percent(new)}, harmonic mean {percent(mean)}."]
    for each in card["nearest"]:
        lines += _known(each)
    if attacks:
        head = ["", "run on", "forwards, mean (max)", "backwards", "at the edge", "largest", "mean rise"]
        head += ["broken", "as PNG"]
        lines += ["", "## How hard it was tried", "", *_table(head, [_tried(column) for column in attacks])]
        notes: dict[str, list[str]] = {}
        for column in attacks:
            notes.setdefault(_note(column), []).append(column["heading"])
        lines += ["", *(f"- {', '.join(headings)}: {note}" for note, headings in notes.items())]
    for curve in card["curves"]:
        scope = f" ({curve['scope']})" if curve["scope"] else ""
        lines += ["", f"## ε curve: {curve['attack']}{scope}", "", f"The curve {_finish(curve)}.", ""]
        rows = [[distance(curve["norm"], point["eps"]), counted(point)] for point in curve["points"]]
        lines += _table(["radius", "right [95 %]"], rows)
    return "\n".join([*lines, "", "## Doubts", "", *_doubts(card["indicators"]), "", *_how(columns)]) + "\n"


def _finish(curve: Mapping[str, Any]) -> str:
    said: str = curve["said"]
    return f"falls to 0: {said}" if curve["zero"] else said


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _about(facts: Mapping[str, Any]) -> list[str]:
    model, recipe = facts.get("model", {}), facts.get("recipe", {})
    parts = []
    if name := model.get("name"):
        parts.append(f"model `{name}`" + (f" ({model['fingerprint']})" if "fingerprint" in model else ""))
    if recipe:
        parts.append(f"recipe `{recipe.get('name')}`, seed {recipe.get('seed')}")
    if versions := facts.get("versions"):
        parts.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    return [" · ".join(parts)] if parts else []


def _known(each: Mapping[str, Any]) -> list[str]:
    if not each["quantiles"]:
        return []
    where = f" of {each['scope']}" if each["scope"] else ""
    sizes = {share: size for share, size in each["quantiles"].items() if size is not None}
    said = [f"{share} within {distance(each['norm'], size)}" for share, size in sizes.items()]
    if beyond := next((share for share in each["quantiles"] if share not in sizes), ""):
        said.append(f"less than {beyond} at any size that was tried")
    return ["", f"Of the samples{where} that are right, known to break: {', '.join(said)}."]


def _tried(column: Mapping[str, Any]) -> list[str]:
    norm = column["statement"]["threat"]["norm"]
    passes = [f"{spent['mean']:,.1f} ({spent['max']:,})" for spent in column["passes"].values()]
    return [
        column["heading"],
        f"{column['attacked']:,}",
        *passes[:2],
        percent(column["boundary"]) if column["boundary"] is not None else "–",
        distance(norm, column["max_size"]) if column["max_size"] is not None else "–",
        f"{column['mean_rise']:+.3g}" if column["mean_rise"] is not None else "–",
        str(column["broken"]),
        f"{column['broken_as_png']} stay so" if column["broken"] else "–",
    ]


def _note(column: Mapping[str, Any]) -> str:
    """On an attack: what it is, what its stages broke, and what is odd."""
    parts = [f"`{column['settings']}`"]
    if len(column["stages"]) > 1:
        parts.append("broke " + ", ".join(f"{stage['broke']} by {stage['name']}" for stage in column["stages"]))
    if column["unmeasured"]:
        parts.append(f"**not measured: {column['unmeasured']}**")
    elif column["idle"]:
        parts.append(f"did nothing on {column['idle']} that withstood")
    if column["certain"]:
        parts.append(f"{column['certain']} started at a loss of exactly 0")
    if column["disputed"]:
        parts.append(f"attack and fresh verdict disagree on {column['disputed']}")
    return "; ".join(parts)


def _doubts(indicators: Sequence[Mapping[str, Any]]) -> list[str]:
    if not indicators:
        return ["None was looked for."]
    lines = []
    for each in indicators:
        if each["verdict"] == "flag":
            where = f" ({each['column']})" if each["column"] else ""
            seen = f"{_brief(each['value'])}, threshold {_brief(each['threshold'])}"
            lines.append(f"- **{each['name']}**{where}: {seen}. {each['advice']}")
    reasons: dict[str, list[str]] = {}
    for each in indicators:
        if each["verdict"] == "unknown":
            where = f" ({each['column']})" if each["column"] else ""
            reasons.setdefault(each["advice"], []).append(each["name"] + where)
    lines += [f"- {', '.join(names)} could not be told: {why}" for why, names in reasons.items()]
    rows = [
        [
            RAISED[each["name"]],
            each["column"] or "–",
            percent(each["value"]),
            percent(each["threshold"]),
            each["verdict"],
        ]
        for each in indicators
        if each["name"] in RAISED and each["value"] is not None
    ]
    fine = dict.fromkeys(each["name"] for each in indicators if each["verdict"] == "ok")
    if unlisted := [name for name in fine if name not in RAISED]:
        lines.append(f"- Nothing to see: {', '.join(unlisted)}.")
    if rows:
        lines += ["", *_table(["doubled, or raised", "seen in", "share", "threshold", "verdict"], rows)]
    return lines


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _how(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the columns have in common of what their numbers depend on, and the keys to look the rest up by."""
    lines = ["## How it was taken", ""]
    said: dict[str, list[str]] = {}
    for column in columns:
        statement = column["statement"]
        split = statement["split"]
        drawn = f"{split['samples']:,} of {split['of']:,} of `{split['name']}` ({split['digest']})"
        asked = f"{_among(statement)} with {_prompts(statement)}"
        text = f"{drawn}, {statement['precision']}, seed {statement['seed']}; {asked}"
        said.setdefault(text, []).append(f"{column['heading']} `{statement['key']}`")
        if statement["attack"] is not None:
            said.setdefault(f"crafted with {_crafted(statement)}", []).append(column["heading"])
    return lines + [f"- {', '.join(names)}: {text}." for text, names in said.items()]


def _among(statement: Mapping[str, Any]) -> str:
    count = statement.get("class count")  # evaluations of before it was written
    return f"classified among {count:,} classes" if count else "classified"


def _prompts(statement: Mapping[str, Any]) -> str:
    return ", ".join(f"“{template}”" for template in statement["templates"])


def _crafted(statement: Mapping[str, Any]) -> str:
    """The prompts that the images were made with, word by word where the statement has them."""
    who, attack, source = statement["attacker"], statement["attack"], statement["source"]["model"]
    if source == "base":  # the undefended twin has no prompts of its own: it is asked in the model's sentences
        return f"the undefended model's sentences: {_prompts(statement)}"
    if source != "self":
        return f"the prompts of {source}"
    if who["asks"] != "gradients":
        return "no prompts: the model is only asked"
    if "guessed" not in (who["prompts"], who["templates"]):
        return "the model's own prompts"
    given = {key: attack[key] for key in ("prompts", "templates") if attack.get(key)}
    return "guessed prompts" + (f" ({', '.join(f'{key} {value}' for key, value in given.items())})" if given else "")
