"""What `ups validate` says of the shared cache."""

import shutil
from contextlib import closing

from ups.latents.build import ensure
from ups.latents.push import push
from ups.latents.remote import Remote
from ups.validate.data import validate_data
from ups.validate.remote import validate_remote


def test_a_miss_a_hit_and_a_fault_of_the_shared_cache_are_told_apart(
    in_store, stage_from_store, tmp_path
):
    config = in_store(cache__remote=f"s3://tiny/{tmp_path.name}")

    def look():
        _, sources = validate_data(config, num_sampled=1)
        (check,), hits = validate_remote(config, sources, {"burgers1d": False})
        return check.status, check.text, hits["burgers1d"]

    status, text, is_hit = look()
    assert (status, is_hit) == ("ok", False)
    assert text.endswith(": the first run builds it and pushes it")
    built = ensure(config, stage_from_store(config))
    assert look()[1:] == ("nothing is pulled, as the files are here: they are encoded", False)
    with closing(Remote.opened(config)) as remote:
        push(remote, config, built.config_hash)
        shutil.rmtree(tmp_path / "staged")
        status, text, is_hit = look()
        assert (status, is_hit) == ("ok", True)
        assert text.startswith(f"{built.config_hash} in s3://tiny/{tmp_path.name}, 262 KB, built ")
        remote.folder.put(f"{built.config_hash}/CURRENT", b"torn")
    status, text, is_hit = look()
    assert (status, is_hit) == ("warn", False)
    assert "a miss, the latents are built here: " in text


def test_a_config_that_shares_nothing_is_not_asked_about(in_store):
    assert validate_remote(in_store(), [], {"burgers1d": False}) == ([], {})
