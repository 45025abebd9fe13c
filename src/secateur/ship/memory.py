"""Run as a process of its own: by how many bytes it grows at most while it loads a network and runs it.

Takes JSON as its argument: "path", "recipe", "runtime", "shape" of the images, "threads"; prints the number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from secateur.ship.onnx_file import OnnxNetwork, need
from secateur.ship.source import open_network


def main() -> None:
    """The peak of the resident memory, less what there was before the network was loaded."""
    asked = json.loads(sys.argv[1])
    path, onnx = Path(asked["path"]), asked["runtime"] == "onnxruntime"
    torch.set_num_threads(asked["threads"])
    images = torch.zeros(asked["shape"])
    if onnx:
        need("onnxruntime")
        import onnxruntime  # noqa: F401  (the runtime itself does not count)
    before = _bytes("VmRSS")
    recipe = None if asked["recipe"] is None else Path(asked["recipe"])
    network = OnnxNetwork(path, asked["threads"]) if onnx else open_network(path, "final", recipe).model
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: reading a file may take more than running
    with torch.no_grad():
        for _ in range(2):
            network(images)
    print(max(0, _bytes("VmHWM") - before))


def _bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
