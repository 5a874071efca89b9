"""Put the tables of finished studies into docs/results.md, and their figures beside it.

    advdistill study NAME                      # for each; hours
    python tests/benchmarks/study_tables.py [--home runs/studies]

What stands between the two marks of docs/results.md is replaced by the `study.md` of every study below in turn, as far
as it has been run; figures go to docs/studies.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

STUDIES = {
    "apd_modalities": "Table 1",
    "apd_online": "Table 2",
    "apd_beta": "Table 3",
    "apd_teachers": "Table 4",
    "two_teachers": "Tables 5 and 13",
    "mmt_ard_weightings": "Table 6",
    "students": "Table 7",
    "strategies_tower": "Table 8, towers",
    "strategies_prompts": "Table 8, prompts",
    "prompt_size": "Table 9",
    "attack_steps": "Table 10",
    "shots": "Table 11",
    "unequal_pairs": "Table 12",
    "transfer": "Table 14",
    "photo_prompts": "Photographs",
}
BEGIN, END = "<!-- Tables: written by `python tests/benchmarks/study_tables.py`. -->", "<!-- End of the tables. -->"
DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Rewrite the part between the marks."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--home", type=Path, default=Path("runs/studies"))
    home = options.parse_args().home
    sections = [section(home / name, head) for name, head in STUDIES.items() if (home / name / "study.md").is_file()]
    page = DOCS / "results.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{''.join(sections)}{END}{after}", encoding="utf-8")
    print(f"{len(sections)} of {len(STUDIES)} tables")


def section(folder: Path, head: str) -> str:
    """A study's page as a part of another: headings one level deeper, figures where that page finds them."""
    text = (folder / "study.md").read_text(encoding="utf-8")
    for picture in sorted(folder.glob("*.png")):
        name = f"{folder.name}_{picture.stem}.png".replace("_study.png", ".png")
        (DOCS / "studies").mkdir(exist_ok=True)
        shutil.copy(picture, DOCS / "studies" / name)
        text = text.replace(f"({picture.name})", f"(studies/{name})")
    text = re.sub(r"^(#+) ", r"##\1 ", text, flags=re.MULTILINE)
    return text.replace("### ", f"### {head}. ", 1).rstrip() + "\n\n"


if __name__ == "__main__":
    main()
