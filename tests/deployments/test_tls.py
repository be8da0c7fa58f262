"""Clients of a process share a TLS context, unless they may change it."""

import ssl

import certifi

from deployments.tls import share_tls_contexts


def test_contexts_of_one_file_of_authorities_are_one_and_others_are_their_own(monkeypatch):
    monkeypatch.setattr(ssl, "create_default_context", ssl.create_default_context)  # put back
    share_tls_contexts()
    shared = ssl.create_default_context(cafile=certifi.where())
    assert ssl.create_default_context(cafile=certifi.where()) is shared
    assert shared.verify_mode == ssl.CERT_REQUIRED
    assert shared.get_ca_certs()
    for other in ({}, {"cafile": certifi.where(), "capath": None}):
        assert ssl.create_default_context(**other) is not ssl.create_default_context(**other)
