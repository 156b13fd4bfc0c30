import pytest

from revformers.errors import UserError
from revformers.training.launched import is_main, launched_processes

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def number_with(monkeypatch, **variables):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return launched_processes()


def test_the_number_is_that_of_the_launcher(monkeypatch):
    assert number_with(monkeypatch) == 1
    assert number_with(monkeypatch, WORLD_SIZE="1", LOCAL_RANK="-1") == 1
    assert number_with(monkeypatch, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1") == 2


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"WORLD_SIZE": ""}, "variable WORLD_SIZE is '', which is not a number; unset it"),
        ({"WORLD_SIZE": "two"}, "variable WORLD_SIZE is 'two', which is not a number"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "variable RANK is '', which is not a number"),
        ({"LOCAL_RANK": "?"}, "variable LOCAL_RANK is '\\?', which is not a number"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, but RANK and MASTER_ADDR are not set, so no launcher has started 4"),
        ({"WORLD_SIZE": "4", "RANK": "0"}, "but MASTER_ADDR is not set, .* start the command with torchrun, or unset"),
    ],
)
def test_variables_that_no_launcher_set_are_named(monkeypatch, variables, sentence):
    with pytest.raises(UserError, match=sentence):
        number_with(monkeypatch, **variables)


@pytest.mark.parametrize(("rank", "main"), [(None, True), ("0", True), ("1", False)])
def test_the_main_process_is_alone_or_has_rank_0(monkeypatch, rank, main):
    monkeypatch.delenv("RANK", raising=False) if rank is None else monkeypatch.setenv("RANK", rank)
    assert is_main() is main
