import psutil

from ups.machine.memory import available_ram_mb, cgroup_headroom_bytes, check_sufficient_ram


def limit(tmp_path, limit, usage):
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(usage)
    return tmp_path


def test_a_container_limit_below_the_machine_counts(tmp_path):
    root = limit(tmp_path, "1000000000", "400000000")
    assert cgroup_headroom_bytes(root) == 600_000_000
    assert available_ram_mb(root) <= 600


def test_no_limit_and_no_cgroup_leave_the_machine_and_the_older_layout_is_read_too(tmp_path):
    assert cgroup_headroom_bytes(limit(tmp_path, "max", "1")) is None
    assert cgroup_headroom_bytes(tmp_path / "nowhere") is None
    assert available_ram_mb(tmp_path / "nowhere") > 0
    (tmp_path / "v1/memory").mkdir(parents=True)
    (tmp_path / "v1/memory/memory.limit_in_bytes").write_text("2000")
    (tmp_path / "v1/memory/memory.usage_in_bytes").write_text("500")
    assert cgroup_headroom_bytes(tmp_path / "v1") == 1500


def test_what_fits_fits_and_what_does_not_does_not():
    total_mb = psutil.virtual_memory().total / 1e6
    assert check_sufficient_ram(1)
    assert not check_sufficient_ram(total_mb)
    assert not check_sufficient_ram(1e12)
    assert check_sufficient_ram(90, available_mb=100)
    assert not check_sufficient_ram(91, available_mb=100), "a tenth stays free"
