"""The cache of plans, timings and kernels."""

from __future__ import annotations

import pytest

from ptdeploy.backends.trt import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PTDEPLOY_CACHE", str(tmp_path / "cache"))


def test_what_was_kept_is_found_under_its_name_alone():
    cache.keep("a" * 64, "plan", b"one")
    assert cache.find("a" * 64, "plan") == b"one"
    assert cache.find("b" * 64, "plan") is None
    assert cache.find("a" * 64, "timing") is None
    cache.keep("a" * 64, "plan", b"two")
    assert cache.find("a" * 64, "plan") == b"two"
    assert len(list(cache.folder().iterdir())) == 1


def test_a_changed_engine_is_not_taken_from_the_cache():
    cache.keep("a" * 64, "plan", b"one")
    (file,) = cache.folder().iterdir()
    file.write_bytes(b"another")
    assert cache.find("a" * 64, "plan") is None
    assert not file.exists()


def test_a_cache_that_cannot_be_touched_is_still_read(monkeypatch):
    cache.keep("a" * 64, "plan", b"one")
    monkeypatch.setattr(cache.os, "utime", refused)
    assert cache.find("a" * 64, "plan") == b"one"


def refused(*_):
    raise PermissionError(1, "Operation not permitted")


def test_the_oldest_go_where_the_cache_is_full(monkeypatch):
    monkeypatch.setattr(cache, "_MOST_BYTES", 25)
    for name in "abc":
        cache.keep(name * 64, "plan", name.encode() * 10)
    assert cache.find("a" * 64, "plan") is None
    assert cache.find("b" * 64, "plan") is not None
    assert cache.find("c" * 64, "plan") is not None


def test_a_key_depends_on_every_fact():
    facts = {"version": "1", "profiles": [1, 2]}
    assert cache.key(facts) == cache.key(dict(reversed(facts.items())))
    assert cache.key(facts) != cache.key({**facts, "version": "2"})
