"""docs/methods.md lists what there is.

Guarantees:
- its tables hold every strategy of ours with its roles, its shipped recipes and its reference, every student, and what
  a model of each class of towers takes and why not the rest, as registry, recipes and models say it today
  (`python tests/packaging/test_methods.py` writes that part);
- every shipped recipe stands in it, and every strategy of ours has a recipe on the embedded digits.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from advdistill.engine.subject import undefended
from advdistill.hooks.registry import Entry, default_registry
from advdistill.recipe.loader import recipe_files
from advdistill.recipe.resolve import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"
MARK = "<!-- From here on written by `python tests/packaging/test_methods.py`. -->\n"
MODELS = (
    "ViT-B-32-quickgelu",
    "RN50-quickgelu",
    "convnext_base",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP2",
    "PE-Core-B-16",
    "EVA02-B-16",
    "MobileCLIP-S1",
    "MobileCLIP-B",
    "ViTamin-S",
    "coca_ViT-B-32",
)
"""One of each class of towers."""


def ours(kind: str) -> list[Entry]:
    return [entry for entry in default_registry().entries(kind) if entry.plugin.dist == "advdistill"]


def recipes() -> dict[str, Recipe]:
    """Name -> recipe, of all that are shipped."""
    return {name: load_recipe(name) for name in sorted(path.stem for path, _ in recipe_files(default_registry()))}


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def strategies() -> str:
    by_strategy: defaultdict[str, list[str]] = defaultdict(list)
    for name, recipe in recipes().items():
        by_strategy[recipe.strategy.use].append(f"`{name}`")
    rows = []
    for entry in sorted(ours("strategy"), key=lambda entry: (entry.plugin.name, entry.spec.name)):
        spec = entry.spec
        roles = [f"`{role}`" for role in spec.teachers] + [f"(`{role}`)" for role in spec.optional]
        where = f"[paper or code]({spec.reference})" if spec.reference else ""
        rows.append([f"`{spec.name}`", spec.summary, " ".join(roles), ", ".join(by_strategy[spec.name]), where])
    return table(["`use:`", "what it does", "teachers (optional)", "recipes", "source"], rows)


def students() -> str:
    rows = [[f"`{e.spec.name}`", e.spec.summary, f"[paper]({e.spec.reference})" if e.spec.reference else ""]
            for e in ours("student")]  # fmt: skip
    return table(["`use:`", "what it is", "source"], rows)


def models() -> str:
    """What each takes; the reasons against, numbered."""
    reasons: dict[str, int] = {}
    kinds, rows = [], []
    for name in MODELS:
        takes = undefended(name, default_registry(), weights=False).takes()
        kinds = kinds or list(takes)
        assert kinds == list(takes)
        cells = ["yes" if not why else f"no ({reasons.setdefault(why, len(reasons) + 1)})" for why in takes.values()]
        rows.append([f"`{name}`", *cells])
    return table(["model", *kinds], rows) + "\n\n" + "\n".join(f"{n}. {why}" for why, n in reasons.items())


def generated() -> str:
    return (
        "\n\n".join(["## Strategies", strategies(), "## Students", students(), "## What a model takes", models()])
        + "\n"
    )


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(MARK) == 1
    assert text.partition(MARK)[2].strip() == generated().strip(), "run: python tests/packaging/test_methods.py"


def test_nothing_is_left_out() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in recipes() if f"`{name}`" not in text] == []
    on_digits = {recipe.strategy.use for recipe in recipes().values() if recipe.data.use == "digits"}
    assert sorted({entry.spec.name for entry in ours("strategy")} - on_digits) == []


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n" + generated(), encoding="utf-8")
