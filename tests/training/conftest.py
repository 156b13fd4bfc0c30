import pytest
import torch

from tests.training.tiny_finetune import write_model


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keep prepared data of the tests out of the user's cache."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("REVFORMERS_CACHE", str(directory))
    return directory


@pytest.fixture(autouse=True)
def one_thread():
    """Spare tiny models the threads, which cost them more time than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A directory with a model, its tokenizer and text; every run goes into a directory of its own."""
    directory = tmp_path_factory.mktemp("shared")
    write_model(directory)
    return directory
