from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from revformers.engine.proof.situation import Situation, tensor_attributes


def layer():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def changes(change, module=None):
    module = module or layer()
    situation = Situation(partial(lambda module, hidden: module(hidden), module))
    change(module)
    return situation.setting_changes() + situation.tensor_changes()


def write(module):
    with torch.no_grad():
        module[0].weight.add_(1)


def give_other_data(module):
    module[0].weight.data = module[0].weight.data.clone()


def test_every_kind_of_change_has_words():
    assert changes(lambda module: None) == []
    assert changes(write) == ["0.weight [4, 4] was changed"]
    assert changes(give_other_data) == ["0.weight [4, 4] was changed"]
    assert changes(lambda module: module[0].weight.requires_grad_(False)) == ["0.weight [4, 4] was frozen"]
    frozen = layer().requires_grad_(False)
    assert changes(lambda module: module[0].bias.requires_grad_(True), frozen) == ["0.bias [4] was unfrozen"]
    replaced = changes(lambda module: setattr(module[0], "weight", nn.Parameter(torch.ones(4, 4))))
    assert replaced == ["0.weight [4, 4] was replaced"]
    assert changes(lambda module: module[0].register_parameter("more", nn.Parameter(torch.ones(1)))) == [
        "0.more was added"
    ]
    assert changes(lambda module: delattr(module[0], "bias"))[0] == "0.bias [4] was removed"
    assert set(changes(nn.Module.eval)) == {"modules were switched to eval()"}
    assert changes(lambda module: setattr(module[2], "p", 0.1)) == ["2.p was changed from 0.5 to 0.1"]


def test_lists_and_dictionaries_that_change_in_place_show():
    module = layer()
    module[0].sizes, module[0].scaling = [], {"default": 2.0}
    expected = ["0.sizes was changed from () to (3,)"]
    assert changes(lambda module: module[0].sizes.append(3), module) == expected
    expected = ["0.scaling was changed from (('default', 2.0),) to (('default', 3.0),)"]
    assert changes(lambda module: module[0].scaling.update(default=3.0), module) == expected


def test_modules_hooks_and_forwards_that_change_have_words():
    def enlarge(module, arguments, output):
        return output * 2

    assert changes(lambda module: setattr(module, "2", nn.Dropout(0.5))) == ["2 was replaced"]
    assert changes(lambda module: module[0].register_forward_hook(enlarge)) == [
        "the forward hook enlarge of 0 was added"
    ]
    assert changes(lambda module: module.register_forward_pre_hook(print)) == [
        "the forward hook print of the layer was added"
    ]
    assert changes(lambda module: setattr(module[0], "forward", print)) == ["0.forward was added"]
    module = layer()
    module.function = torch.tanh
    assert changes(lambda module: setattr(module, "function", torch.sin), module) == ["function was replaced"]
    handles = [module.register_forward_hook(lambda *_: None) for _ in range(2)]
    assert changes(lambda _: handles[0].remove(), module) == ["the forward hook <lambda> of the layer was removed"]
    module = layer()
    module[0].merged_adapters, module[0]._disable_adapters = ["default"], True
    assert changes(lambda module: module[0].merged_adapters.clear(), module) == ["adapters were unmerged"]
    assert changes(lambda module: setattr(module[0], "_disable_adapters", False), module) == ["adapters were enabled"]


def test_statistics_are_found_and_tables_that_grow_are_not():
    module = layer()
    situation = Situation(module)
    assert situation.written_buffer() is None
    module(torch.randn(3, 4))
    assert situation.written_buffer() == "1.num_batches_tracked"
    module[0].register_buffer("table", torch.zeros(4))
    situation = Situation(module)
    module[0].table = torch.zeros(8)
    assert situation.written_buffer() is None
    situation = Situation(module)
    module[0].table = module[0].table * 0.9
    assert situation.written_buffer() == "0.table"


def test_hooks_that_step_a_parameter_are_found():
    module = layer()
    situation = Situation(module)
    assert not situation.trains_in_backward()
    module[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    assert situation.trains_in_backward()


def test_what_the_evaluation_itself_sets_is_no_change():
    module = layer()
    before = Situation(module)
    module.calls = 1
    after = before.now()
    assert before.setting_changes() == ["calls was changed from None to 1"]
    assert after.setting_changes() == []
    module.tables = [torch.ones(3), torch.ones(4)]
    assert after.setting_changes() == []
    assert after.owns(module[0].weight)
    assert not after.owns(torch.ones(1))


def test_a_dtype_that_changes_and_an_attention_kernel_have_words():
    assert changes(lambda module: module[0].double()) == [
        "0.weight [4, 4] was changed from torch.float32 to torch.float64",
        "0.bias [4] was changed from torch.float32 to torch.float64",
    ]
    module = layer()
    module.config = SimpleNamespace(_attn_implementation="sdpa")
    expected = ["config._attn_implementation was changed from 'sdpa' to 'eager'"]
    assert changes(lambda module: setattr(module.config, "_attn_implementation", "eager"), module) == expected


def test_tensors_among_the_attributes_are_found_in_lists_and_dictionaries_too():
    module = nn.Linear(2, 2)
    module.alone, module.several, module.named = torch.ones(1), [torch.ones(2), 3], {"a": torch.ones(3)}
    assert [(name, len(tensor)) for name, tensor in tensor_attributes(module)] == [
        ("alone", 1),
        ("several[0]", 2),
        ("named['a']", 3),
    ]
    assert changes(lambda module: module.alone.add_(1), module) == ["alone was changed"]
    assert changes(lambda module: module.several.__setitem__(0, torch.ones(2)), module) == ["several[0] was replaced"]
    assert changes(lambda module: module.named.clear(), module) == ["named['a'] was removed"]


def test_what_a_layer_writes_to_and_assigns_itself_is_told_apart_from_changes():
    module = layer()
    module.seen, module.number = torch.zeros(1), 1
    before = Situation(module, settings=False)
    with torch.no_grad():
        module[0].weight.add_(1)
    module.seen.add_(1)
    module.number, module.note = 2, torch.ones(1)
    written = [(name, is_written) for _, name, _, is_written in before.tensors_besides_weights()]
    assert written[:1] == [("seen", True)]
    assert ("weight", True) in written
    assert ("running_mean", False) in written
    assert [name for _, name in before.reassigned_tensors()] == ["note"]
    assert [name for _, name in before.reassigned_numbers()] == ["number"]
    after = before.now()
    assert sorted(after.own_writes()) == ["0.weight", "number", "seen"]
    assert after.setting_changes() + after.tensor_changes() == []


def test_a_number_that_a_layer_assigns_first_or_in_a_list_is_its_own_write_and_one_that_stays_is_none():
    module = layer()
    module.unknown, module.log = float("nan"), []
    before = Situation(module, settings=False)
    assert before.now().own_writes() == []
    module.log.append(1.0)
    module.first = 1
    after = before.now()
    assert sorted(after.own_writes()) == ["first", "log"]
    module.log.append(1.0)
    module.first += 1
    assert after.setting_changes() == []
