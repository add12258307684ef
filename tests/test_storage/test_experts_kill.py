"""kill -9 while the registry is written: what is read afterwards is the old one or the new one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aios.core.types import Expert
from aios.storage.experts import FileExpertStore

EXPERTS = 20

# One process imports the store and forks the writers, since imports take longer than the kills.
# Every write gives all experts the same new count, so a mixture of two writes would show.
_KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from aios.storage.experts import FileExpertStore, fold_counters

root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = FileExpertStore(root, "tiny")
ids = [expert.expert_id for expert in store.list()]
rng = random.Random(seed)

def write(begin, told):
    count = begin
    while True:
        count += 1
        fold_counters(store, {one: (count, 0.5) for one in ids})
        os.write(told, b"%d\\n" % count)

reached = 0
for number in range(kills):
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        write(reached, told)
    os.close(told)
    said = b""
    for _ in range(rng.randint(0, 2)):  # writes that are finished; the next one is hit
        said += os.read(heard, 100)
    time.sleep(rng.uniform(0.0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(heard, "rb") as lines:
        said += lines.read()
    finished = int(said.split()[-1]) if said else reached
    counts = {expert.total_activations for expert in store.list()}
    assert len(counts) == 1, f"kill {number}: a mixture of writes: {counts}"
    (found,) = counts
    assert finished <= found <= finished + 1, f"kill {number}: {finished} written, {found} found"
    reached = found
fold_counters(store, {ids[0]: (10**6, 0.5)})  # the dead hold no lock
assert store.get(ids[0]).total_activations == 10**6
print(reached)
"""


def killed(root: Path, kills: int) -> int:
    """Kills a writer so often; gives how many writes there were."""
    store = FileExpertStore(root, "tiny")
    for number in range(EXPERTS):
        store.save(Expert(f"e{number}", f"Expert {number}", description="x" * 2000))
    before = json.loads((root / "registry.json").read_text())
    before["theirs"] = {"kept": True}
    (root / "registry.json").write_text(json.dumps(before))
    done = subprocess.run(
        [sys.executable, "-c", _KILLER, str(root), str(kills), "11"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((root / "registry.json").read_text())["theirs"] == {"kept": True}
    return int(done.stdout)


def test_five_kills_leave_the_old_or_the_new_registry(tmp_path: Path) -> None:
    assert killed(tmp_path, 5) >= 2


@pytest.mark.slow
def test_a_hundred_kills_leave_the_old_or_the_new_registry(tmp_path: Path) -> None:
    assert killed(tmp_path, 100) >= 50
