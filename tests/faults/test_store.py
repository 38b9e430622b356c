"""`put_if_absent` on object stores without a conditional put."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import s3fs

from pipeline.storage import Store
from tests.conftest import Bucket
from tests.faults import actions
from tests.faults.proxy import Action, Rule, running_proxy


@pytest.fixture(params=["ignores the condition", "answers 501"])
def store(request: pytest.FixtureRequest, s3: Bucket) -> Iterator[Store]:
    address = urlsplit(s3.env["AWS_ENDPOINT_URL"])
    assert address.hostname
    assert address.port
    direct = s3fs.S3FileSystem(use_listings_cache=False)
    ignoring: Action = actions.unconditional(direct.pipe_file)
    action = ignoring if "ignores" in request.param else actions.refuse_condition
    with running_proxy((address.hostname, address.port)) as proxy:
        store = Store(s3.uri)
        store._fs = s3fs.S3FileSystem(endpoint_url=proxy.url, use_listings_cache=False)
        with proxy.breaking(Rule("PUT", "", action, times=100)):
            yield store


def test_an_existing_object_is_kept(store: Store) -> None:
    assert store.put_if_absent("name", b"first")
    assert not store.put_if_absent("name", b"second")
    assert store.get("name") == b"first"
