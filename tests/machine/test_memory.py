"""How lack of memory is recognised, and how a container's limit is found and kept off."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fieldmark.machine import memory
from fieldmark.machine.memory import Container
from tests.fit.test_fit_loop import make_plan, make_state, run

GIB = 2**30


def test_the_processors_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_exhausted(caught.value)


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (OSError(12, "Cannot allocate memory"), False),
    ],
)
def test_what_counts_as_lack_of_memory(error: Exception, exhausted: bool) -> None:
    assert memory.is_exhausted(error) == exhausted


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_free_is_the_machines_or_less_in_a_container(tmp_path: Path) -> None:
    host = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:  {8 * GIB // 1024} kB\n"}
    assert memory.free(written(tmp_path / "bare", host)) == 8 * GIB
    box = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/memory.stat": f"active_file {GIB // 4}\ninactive_file {GIB // 4}\n",
    }
    assert memory.free(written(tmp_path / "box", host | box)) == 3 * GIB // 2
    full = box | {"sys/fs/cgroup/memory.current": f"{3 * GIB}\n"}
    assert memory.free(written(tmp_path / "full", host | full)) == 0
    roomy = box | {"sys/fs/cgroup/memory.max": f"{64 * GIB}\n"}
    assert memory.free(written(tmp_path / "roomy", host | roomy)) == 8 * GIB
    assert memory.free(tmp_path / "nothing is said") == 4 * GIB


def test_version_2_takes_the_lowest_limit_around(tmp_path: Path) -> None:
    groups = "sys/fs/cgroup"
    root = written(
        tmp_path,
        {
            "proc/self/cgroup": "0::/machine/box/job\n",
            f"{groups}/machine/box/job/memory.max": "max\n",
            f"{groups}/machine/box/memory.max": f"{2 * GIB}\n",
            f"{groups}/machine/box/memory.current": f"{3 * GIB // 2}\n",
            f"{groups}/machine/box/memory.stat": f"anon 7\ninactive_file {GIB // 2}\nfile 9\n",
            f"{groups}/machine/memory.max": f"{4 * GIB}\n",
        },
    )
    container = Container.find(root)
    assert container is not None
    assert container.limit == 2 * GIB
    assert container.used() == 0.5
    container.usage.unlink()
    assert container.used() == 0.0


def test_inside_a_container_the_path_may_not_be_there(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        {
            "proc/self/cgroup": "12:cpu:/x\n4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": (
                f"inactive_file 1\nactive_file 1\ntotal_inactive_file {GIB // 4}\n"
                f"total_active_file {GIB // 4}\nhierarchical_memory_limit {GIB}\n"
            ),
        },
    )
    container = Container.find(root)
    assert container is not None
    assert container.used() == 0.5


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        },
        {"proc/self/cgroup": "nonsense\n"},
    ],
)
def test_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    assert Container.find(written(tmp_path, files)) is None


def test_this_machine_can_be_asked() -> None:
    container = Container.find()
    assert container is None or 0 <= container.used() <= 1.1


@dataclasses.dataclass(frozen=True)
class Filling(Container):
    """A container whose use is scripted."""

    shares: list[float] = dataclasses.field(default_factory=list)

    def used(self) -> float:
        return self.shares.pop(0) if len(self.shares) > 1 else self.shares[0]


def filling(*shares: float) -> Filling:
    return Filling(GIB, Path("usage"), Path("stat"), list(shares))


@pytest.mark.parametrize(
    ("shares", "halvings"),
    [
        ((0.2, 0.95, 0.6), 1),  # a step fills it
        ((0.2, 0.95, 0.5, 0.97, 0.6), 2),  # and again after halving
        ((0.92, 0.95), 0),  # others fill it
        ((0.2, 0.89), 0),
        ((0.2, 0.95, 0.2, 0.95, 0.2, 0.95, 0.2, 0.95, 0.2, 0.95, 0.2, 0.95), 3),  # 6, 3, 2, 1
    ],
)
def test_a_step_near_the_containers_limit_halves_the_micro_batches(
    shares: tuple[float, ...], halvings: int
) -> None:
    state = make_state()
    run(state, make_plan(container=filling(*shares)))
    assert state.halvings == halvings
    assert state.step == 12
    if halvings:
        assert state.incidents[0].startswith(
            "step 1 uses 95% of the 1.0 GiB that the container has: micro-batches of 3 pictures"
        )
