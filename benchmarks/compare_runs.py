"""One Markdown table out of several runs: the accuracy ladder of each, then the IoU of every class.

python benchmarks/compare_runs.py CAP=runs/cap-0,runs/cap-1 L1=runs/l1-0,runs/l1-1 ... > table.md

Several folders of one row are seeds of the same recipe: their mean is given, and what each came to.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RUNGS = ("unpruned", "pruned", "recalibrated", "finetuned")
MINORITY = ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist")  # CamVid's five rarest of eleven classes


Result = dict[str, Any]


def mean(values: list[float | None]) -> float | None:
    """None if a run has no such number."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def rung(result: Result, stage: str) -> dict[str, Any]:
    return next((row for row in result["stages"] if row["stage"] == stage), {})


def ladder(name: str, seeds: list[Result]) -> str:
    def over_seeds(stage: str, key: str) -> float | None:
        return mean([rung(result, stage).get(key) for result in seeds])

    last = [rung(result, "finetuned") for result in seeds]
    each = f" ({', '.join(percent(row['miou']) for row in last)})" if len(seeds) > 1 else ""
    cells = [name, percent(over_seeds("unpruned", "miou"))]
    cells += [percent(mean([result.get("sparsified_miou") for result in seeds]))]
    cells += [percent(over_seeds(stage, "miou")) for stage in RUNGS[1:3]]
    cells += [percent(over_seeds("finetuned", "miou")) + each]
    cells += [
        percent(mean([row["per_class"][c] for row in last for c in MINORITY])),
        percent(mean([r["macc"] for r in last])),
    ]
    for key, unit, digits in (("params", 1e6, 3), ("macs", 1e9, 3), ("latency_ms", 1, 1)):
        value = over_seeds("finetuned", key)
        cells.append("-" if value is None else f"{value / unit:.{digits}f}")
    cells.append(f"{mean([sum(result['seconds'].values()) / 60 for result in seeds]):.0f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER[,FOLDER...]")
    rows: dict[str, list[Result]] = {}
    for item in parser.parse_args().runs:
        name, _, folders = item.partition("=")
        rows[name] = [json.loads((Path(folder) / "result.json").read_text()) for folder in folders.split(",")]
    head = ["row", "before", "sparse", "cut", "BN re-estimated", "fine-tuned", "minority", "mAcc", "params M", "GMACs"]
    head += ["ms", "minutes"]
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * (len(head) - 1) + "|")
    for name, seeds in rows.items():
        print(ladder(name, seeds))
    finals = {name: [rung(result, "finetuned")["per_class"] for result in seeds] for name, seeds in rows.items()}
    classes = list(next(iter(finals.values()))[0])
    print("\n| IoU, fine-tuned | " + " | ".join(classes) + " |\n|---" + "|---:" * len(classes) + "|")
    for name, per_class in finals.items():
        print(f"| {name} | " + " | ".join(percent(mean([row[c] for row in per_class])) for c in classes) + " |")


if __name__ == "__main__":
    main()
