from tests.training.conftest import cache, one_thread  # noqa: F401 - fixtures for every test here
