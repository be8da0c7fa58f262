import psutil
import pytest

from ups.machine.memory import available_ram_mb, cgroup_headroom_bytes, check_sufficient_ram

UNIFIED = ("memory.max", "memory.current", "inactive_file")
LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.fixture
def headroom(tmp_path):
    """`headroom(membership, names, {group: (limit, usage, cache)})`, below a root of its own."""

    def find(membership, names, groups):
        (tmp_path / "cgroup").write_text(f"1:name=systemd:/elsewhere\n{membership}\n")
        for group, values in groups.items():
            folder = tmp_path / "root" / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / names[0]).write_text(f"{values[0]}\n")
            (folder / names[1]).write_text(f"{values[1]}\n")
            (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {values[2]}\nfile 9\n")
        return cgroup_headroom_bytes(tmp_path / "root", tmp_path / "cgroup")

    return find


def test_the_smallest_room_of_the_own_group_and_those_above_it_counts(headroom):
    groups = {".": (9000, 8000, 0), "a": ("max", 0, 0), "a/b": (3000, 100, 0), "c": (10, 10, 0)}
    assert headroom("0::/a/b", UNIFIED, groups) == 1000
    assert headroom("0::/a/b", UNIFIED, {".": (9000, 0, 0)}) == 2900
    assert headroom("0::/a", UNIFIED, {}) == 9000


def test_the_older_layout_is_read_too(headroom):
    none = 9223372036854771712
    groups = {"memory": (none, 0, 0), "memory/a": (2000, 1900, 400), "memory/b": (1, 1, 0)}
    assert headroom("4:cpuset,memory:/a\n0::/b", LEGACY, groups) == 500


def test_a_container_whose_root_is_its_own_group_is_limited_by_it(headroom):
    for membership in ("0::/docker/a", "0::/../a", "0::/", "4:memory:/docker/a"):
        assert headroom(membership, UNIFIED, {".": (1000, 400, 0)}) == 600


def test_files_that_the_kernel_gives_back_are_not_used(headroom):
    full = {".": (16_000_000_000, 15_800_000_000, 14_000_000_000)}
    assert headroom("0::/", UNIFIED, full) == 14_200_000_000


def test_no_limit_and_no_cgroup_leave_the_machine(headroom, tmp_path):
    assert headroom("0::/", UNIFIED, {".": ("max", 1, 0)}) is None
    nowhere = tmp_path / "nowhere"
    assert cgroup_headroom_bytes(nowhere, nowhere) is None
    assert available_ram_mb(nowhere, nowhere) > 0


def test_a_group_bounds_what_is_available(headroom, tmp_path):
    headroom("0::/", UNIFIED, {".": (1_000_000, 400_000, 0)})
    assert available_ram_mb(tmp_path / "root", tmp_path / "cgroup") == 0.6


def test_what_fits_fits_and_what_does_not_does_not():
    total_mb = psutil.virtual_memory().total / 1e6
    assert check_sufficient_ram(1)
    assert not check_sufficient_ram(total_mb)
    assert not check_sufficient_ram(1e12)
    assert check_sufficient_ram(90, available_mb=100)
    assert not check_sufficient_ram(91, available_mb=100), "a tenth stays free"
