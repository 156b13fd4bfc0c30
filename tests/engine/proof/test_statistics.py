import pytest
import torch
from torch import nn

from revformers.engine.proof.evidence import SMALL_WEIGHT
from revformers.engine.proof.situation import Situation
from revformers.engine.proof.statistics import SecondCount, statistics_of


class Counting(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.seen, self.number, self.note = torch.zeros(1), 0, torch.ones(2)
        self.log, self.by_key = [], {}
        self.count = count

    def forward(self, hidden):
        self.count(self)
        return self.linear(hidden)


def assign(module):
    module.seen = module.seen + 1


def add_to_number(module):
    module.number += 1


def subtract_from_number(module):
    """In the second evaluation from -1 to -2, which have the same hash in Python."""
    module.number -= 1


def first_assigned(module):
    module.new = getattr(module, "new", 0) + 1


def by_key(module):
    module.by_key["short"] = module.by_key.get("short", 0) + 1


COUNTS = {
    "in place": ("seen", lambda module: module.seen.add_(1)),
    "through its data": ("seen", lambda module: module.seen.data.add_(1)),
    "to another tensor": ("seen", assign),
    "in a number": ("number", add_to_number),
    "downwards": ("number", subtract_from_number),
    "in a number that is new": ("new", first_assigned),
    "in a list that grows by numbers": ("log", lambda module: module.log.append(1.0)),
    "in a list that grows by tensors": ("log", lambda module: module.log.append(torch.ones(1))),
    "in an entry that is new": ("by_key", by_key),
    "in a frozen weight": ("bias", lambda module: module.linear.bias.data.add_(1)),
}


def after_a_forward_pass(count):
    module = Counting(count)
    module.linear.bias.requires_grad_(False)
    before = Situation(module, settings=False)
    module(torch.ones(4))
    return module, statistics_of(before)


@pytest.mark.parametrize("kind", COUNTS)
def test_a_second_evaluation_that_goes_on_counting_is_found(kind):
    name, count = COUNTS[kind]
    module, statistics = after_a_forward_pass(count)
    second = SecondCount(statistics)
    assert second.verdicts().all(), "nothing was counted yet"
    module(torch.ones(4))
    verdicts = second.verdicts()
    assert (~verdicts).sum() == 1
    assert second.first_of(verdicts).name == name


KEPT = []


def nan():
    """Return a NaN that is another object than those before it; the hash of a NaN is that of the object."""
    KEPT.append(float("nan"))
    return KEPT[-1]


@pytest.mark.parametrize(
    "fill",
    [
        lambda module: setattr(module, "number", nan()),
        lambda module: setattr(module, "new", nan()),
        lambda module: module.by_key.update(short=nan(), long=2),
        lambda module: setattr(module, "log", [-1, nan(), torch.ones(1)]),
        lambda module: setattr(module, "number", 1 << 20_000),  # more digits than Python writes in decimal
    ],
)
def test_numbers_that_are_assigned_alike_each_time_count_nothing(fill):
    module, statistics = after_a_forward_pass(fill)
    module.number, module.log, module.by_key = 7, [], {}  # by someone else, between the passes
    second = SecondCount(statistics)
    module(torch.ones(4))
    assert second.verdicts().all()


def test_each_attribute_is_read_once_however_many_numbers_it_holds():
    _, statistics = after_a_forward_pass(lambda module: module.log.extend(range(1000)))
    assert [statistic.name for statistic in statistics if statistic.name.startswith("log")] == ["log"]


def test_what_is_filled_alike_each_time_counts_nothing():
    module, statistics = after_a_forward_pass(lambda module: module.seen.fill_(7.0))
    module.seen.zero_()  # by someone else, between the passes
    second = SecondCount(statistics)
    module(torch.ones(4))
    assert second.verdicts().all()


def test_what_was_not_seen_to_be_written_to_is_looked_at_where_it_is_small():
    module = nn.Linear(4, 4)
    module.small, module.large = torch.zeros(SMALL_WEIGHT), torch.zeros(SMALL_WEIGHT + 1)
    names = {statistic.name for statistic in statistics_of(Situation(module))}
    assert names == {"small"}, "and weights that train are not"


def test_there_may_be_none():
    assert SecondCount(statistics_of(Situation(nn.Linear(4, 4)))).verdicts() is None


UNREADABLE = {
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(4, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "mkldnn": lambda: torch.ones(4).to_mkldnn(),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_that_cannot_be_read_are_left_out(kind):
    module = nn.Linear(4, 4)
    module.scratch = torch.zeros(4)
    before = Situation(module)
    module.scratch = UNREADABLE[kind]()
    assert statistics_of(before) == []
    module.scratch = torch.ones(4)
    assert [statistic.name for statistic in statistics_of(before)] == ["scratch"]


def test_a_tensor_whose_memory_is_freed_later_is_left_alone():
    module = nn.Linear(4, 4)
    module.scratch = torch.zeros(4)
    (statistic,) = statistics_of(Situation(module))
    module.scratch.untyped_storage().resize_(0)
    assert statistic.read() is None
    assert SecondCount([statistic]).verdicts().all()
    del module.scratch
    assert SecondCount([statistic]).verdicts().all()
