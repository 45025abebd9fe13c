"""Where to compute: what the C library does with freed memory."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from secateur.training.devices import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def step():
    for _ in range(5):
        torch.ones(1 << 24)  # 64 MiB
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back block by block")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert faults("keep")[0] == "True"
    assert faults("keep")[1] < 100 < faults("as it is")[1]
