"""One Markdown table out of several run folders: the accuracy ladder of each, then the IoU of every class.

python benchmarks/compare_runs.py CAP=runs/cap L1=runs/l1 ... > results/table.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RUNGS = ("unpruned", "pruned", "recalibrated", "finetuned")
MINORITY = ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist")  # CamVid's five rarest of eleven classes


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def ladder(name: str, result: dict[str, Any]) -> str:
    rows = {row["stage"]: row for row in result["stages"]}
    last = rows["finetuned"]
    cells = [name, percent(rows["unpruned"]["miou"]), percent(result.get("sparsified_miou"))]
    cells += [percent(rows[rung]["miou"]) if rung in rows else "-" for rung in RUNGS[1:]]
    cells += [percent(sum(last["per_class"][c] for c in MINORITY) / len(MINORITY)), percent(last["macc"])]
    cells += [f"{last['params'] / 1e6:.3f}", f"{last['macs'] / 1e9:.3f}", f"{last['latency_ms']:.1f}"]
    cells.append(f"{sum(result['seconds'].values()) / 60:.0f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    named = dict(item.split("=", 1) for item in parser.parse_args().runs)
    results = {name: json.loads((Path(folder) / "result.json").read_text()) for name, folder in named.items()}
    head = ["row", "before", "sparse", "cut", "BN re-estimated", "fine-tuned", "minority", "mAcc", "params M", "GMACs"]
    head += ["ms", "minutes"]
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * (len(head) - 1) + "|")
    for name, result in results.items():
        print(ladder(name, result))
    finals = {name: next(r for r in result["stages"] if r["stage"] == "finetuned") for name, result in results.items()}
    classes = list(next(iter(finals.values()))["per_class"])
    print("\n| IoU, fine-tuned | " + " | ".join(classes) + " |\n|---" + "|---:" * len(classes) + "|")
    for name, row in finals.items():
        print(f"| {name} | " + " | ".join(percent(row["per_class"][c]) for c in classes) + " |")


if __name__ == "__main__":
    main()
