"""What a rented machine will find, held against what lies here before anything is paid for."""

import pytest

from ups.errors import ConfigError
from ups.vast.script import find_source


@pytest.fixture
def clone(tmp_path, repository, git):
    """A clone that a test may change."""
    git(tmp_path, "clone", "-q", "--shared", repository.bare, "clone")
    return tmp_path / "clone"


def test_the_source_is_origin_and_the_whole_commit(clone, repository):
    source, config = find_source(None, "HEAD", "tiny", clone)
    assert (source.repo, source.commit) == (str(repository.bare), repository.commit)
    assert (config, source.differs, source.pushed) == ("tiny", False, True)


def test_a_config_given_by_its_path_is_named_as_the_clone_knows_it(clone, git):
    path = clone / "deployments" / "configs" / "smoke.yaml"
    assert find_source(None, "HEAD", str(path), clone)[1] == "deployments/configs/smoke.yaml"
    other = clone / "speed" / "mine.yaml"
    other.write_text(path.read_text())
    git(clone, "add", other)
    git(clone, "commit", "-qm", "more")
    assert find_source("/r", "HEAD", str(other), clone)[1] == "speed/mine.yaml"


def test_a_name_means_the_config_that_was_checked(clone, tmp_path, monkeypatch):
    monkeypatch.setattr("ups.vast.script.CONFIG_DIR", tmp_path)  # as UPS_CONFIG_DIR
    (tmp_path / "smoke.yaml").write_text("name: other\n")
    with pytest.raises(ConfigError, match=r"--config: found 'smoke', expected a name"):
        find_source(None, "HEAD", "smoke", clone)
    monkeypatch.setattr("ups.vast.script.CONFIG_DIR", clone / "deployments" / "configs")
    assert find_source(None, "HEAD", "smoke", clone)[1] == "smoke"


def test_a_commit_that_was_not_pushed_and_files_that_differ_are_told(clone, git):
    (clone / "README.md").write_text("other")
    git(clone, "commit", "-qam", "more")
    (clone / "Makefile").write_text("other")
    source = find_source(None, "HEAD", "tiny", clone)[0]
    assert (source.differs, source.pushed) == (True, False)
    assert find_source("/elsewhere", "HEAD", "tiny", clone)[0].pushed  # who knows


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, "no-such", "tiny"), "--commit: found 'no-such'"),
        ((None, "--output=x", "tiny"), "--commit: found '--output=x'"),
        ((None, "HEAD", "/etc/passwd"), "--config: found '/etc/passwd', expected a name"),
        ((None, "HEAD~1", "tiny"), "tiny.yaml is not in commit"),
        (("https://token@example.org/r", "HEAD", "tiny"), "--repo: holds a login"),
        (("HTTPS://me:tok@e.org/r.git", "HEAD", "tiny"), "--repo: holds a login"),
        (("https://me:tok@[::1]/r.git", "HEAD", "tiny"), "--repo: holds a login"),
        (("http::https://tok@e.org/r.git", "HEAD", "tiny"), "--repo: holds a login"),
        (("ssh://git:pw@e.org/r.git", "HEAD", "tiny"), "--repo: holds a login"),
        (("ftp://me:pw@e.org/r.git", "HEAD", "tiny"), "--repo: holds a login"),
        (("https://me:pw@[::1/r.git", "HEAD", "tiny"), "--repo: holds a login"),
    ],
)
def test_what_the_machine_would_not_find_is_refused(clone, given, message):
    with pytest.raises(ConfigError, match=message):
        find_source(*given, clone)


@pytest.mark.parametrize(
    "address", ["ssh://git@e.org/r.git", "git@e.org:me/r.git", "https://[::1]/r.git", "/a@b:c/r"]
)
def test_an_address_without_a_secret_is_taken_as_it_is(clone, address):
    assert find_source(address, "HEAD", "tiny", clone)[0].repo == address


def test_a_commit_with_another_config_or_without_the_scripts_second_half_is_refused(clone, git):
    (clone / "deployments" / "configs" / "tiny.yaml").write_text("name: other")
    differs = r"tiny\.yaml differs from commit \w{12}: commit and push"
    with pytest.raises(ConfigError, match=differs):
        find_source(None, "HEAD", "tiny", clone)
    git(clone, "rm", "-q", "ups/vast/provision.sh")
    git(clone, "commit", "-qm", "less")
    with pytest.raises(ConfigError, match=r"has no ups/vast/provision\.sh"):
        find_source(None, "HEAD", "tiny", clone)


def test_without_a_remote_the_address_is_asked_for(clone, git):
    git(clone, "remote", "remove", "origin")
    with pytest.raises(ConfigError, match="no remote `origin`: give the address with --repo"):
        find_source(None, "HEAD", "tiny", clone)
    assert find_source("https://example.org/r", "HEAD", "tiny", clone)[0].repo.endswith("/r")


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:me/ups.git", "https://github.com/me/ups.git"),
        ("ssh://git@example.org/me/ups.git", "https://example.org/me/ups.git"),
        ("ssh://git@example.org:2222/me/ups.git", "https://example.org/me/ups.git"),
        ("https://github.com/me/ups.git", "https://github.com/me/ups.git"),
        ("/srv/git/ups.git", "/srv/git/ups.git"),
    ],
)
def test_a_remote_by_ssh_is_cloned_by_https_since_the_machine_has_no_key(
    clone, git, remote, address
):
    git(clone, "remote", "set-url", "origin", remote)
    assert find_source(None, "HEAD", "tiny", clone)[0].repo == address
