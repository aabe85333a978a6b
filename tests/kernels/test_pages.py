"""Memory is given back only where a file can bring it back."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mezzotint.checkpoints.files import read_state, write_state
from mezzotint.kernels.pages import give_back, give_back_freed

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are given back on Linux only")


def layer(weight: Tensor) -> nn.Linear:
    found = nn.Linear(1, 1, bias=False)
    found.weight = nn.Parameter(weight, requires_grad=False)
    return found


def test_pages_of_a_file_go_and_come_back(tmp_path: Path, generator: torch.Generator):
    weight = torch.randn(1024, 1024, generator=generator)
    write_state(tmp_path / "model.safetensors", {"weight": weight})
    mapped = layer(read_state(tmp_path / "model.safetensors")["weight"])
    assert torch.equal(mapped.weight, weight)  # reads every page
    assert give_back([mapped]) >= 1023 * 4096
    assert torch.equal(mapped.weight, weight)


def test_memory_that_no_file_holds_stays(tmp_path: Path, generator: torch.Generator):
    weight = torch.randn(1024, 1024, generator=generator)
    own = layer(weight.clone())
    assert give_back([own]) == 0
    assert torch.equal(own.weight, weight)


def test_a_page_that_was_written_to_stays(tmp_path: Path, generator: torch.Generator):
    weight = torch.randn(1024, 1024, generator=generator)
    write_state(tmp_path / "model.safetensors", {"weight": weight})
    mapped = layer(read_state(tmp_path / "model.safetensors")["weight"])
    mapped.weight[500, 500] = 7.0
    assert give_back([mapped]) == 0
    assert mapped.weight[500, 500] == 7.0


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


FAULTS = """
import resource
from mezzotint.kernels.pages import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(b"x") * (40 << 20)  # 10,240 pages, written and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

lost = faults()
keep_freed()
faults()
print(lost, faults())
"""


def test_what_was_freed_is_kept_for_the_next_allocation():
    """By default large pieces come as empty pages again. In a process of its own, because it holds for all of it."""
    told = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    lost, kept = map(int, told.stdout.split())
    assert lost > 40_000
    assert kept < 2_000


def test_what_was_freed_in_pieces_goes_back():
    pieces = [torch.ones(1 << 12) for _ in range(4096)]  # 64 MB of pieces that the allocator keeps
    kept = pieces[-1]  # on top of them, so that it cannot give them back by itself
    full = resident()
    del pieces
    give_back_freed()
    assert resident() < full - (40 << 20)
    assert float(kept.sum()) == 1 << 12
