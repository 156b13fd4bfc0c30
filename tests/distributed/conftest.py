import pytest

from tests.distributed.pair import Pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two processes that the tests share."""
    both = Pair(tmp_path_factory.mktemp("pair"))
    yield both
    both.stop()
