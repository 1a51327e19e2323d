# SPDX-License-Identifier: Apache-2.0
"""What a library logs of an address has no password in it, for as long as is asked."""

import io
import logging

from albert_jax.utils.log_secrets import secrets_hidden

ADDRESS = "https://me:s3cr@et@host/a?token=s3cret"


def test_a_librarys_lines_lose_their_secrets_and_others_keep_theirs(caplog):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    library = logging.getLogger("a_library")
    library.addHandler(handler)
    before = logging.getLogger("a_library.before")
    with secrets_hidden("a_library"):
        before.warning("%s again: %s", ADDRESS, ValueError(ADDRESS))
        library.warning("a line without an address")
        logging.getLogger("a_library.made.meanwhile").warning(ADDRESS)  # by its handler
        logging.getLogger("a_library_like").warning(ADDRESS)
    assert "s3cr" not in stream.getvalue()
    assert stream.getvalue().splitlines()[0] == "https://host/a again: https://host/a"
    assert caplog.messages[-1] == ADDRESS
    before.warning(ADDRESS)
    assert ADDRESS in stream.getvalue()
    assert not [*library.filters, *before.filters, *handler.filters]
    library.removeHandler(handler)
