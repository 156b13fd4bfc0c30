import json
from pathlib import Path

import pytest

import revformers as rf
from revformers.engine.state_format import StateFormat
from revformers.errors import ModelFilesError
from revformers.models.identity import Identity, in_words, read_identity, warn_of_unregistered
from revformers.models.provenance import Provenance
from revformers.models.update_predictor import PredictorForm


def identity(**changes):
    values = {
        "dynamics": rf.BlendedMidpoint(["1/4", 1]),
        "activations": rf.Budget("1GiB"),
        "states": StateFormat("auto", 14),
        "predictor_form": PredictorForm(),
        "provenance": Provenance(made_by="hand"),
    }
    return Identity(**values | changes)


@pytest.mark.parametrize("changes", [{}, {"predictor_form": None}, {"provenance": None}], ids=str)
def test_an_identity_survives_json(changes):
    written = json.loads(json.dumps(identity(**changes).to_dict()))
    assert Identity.from_dict(written) == identity(**changes)


def test_states_are_saved_as_text_and_are_64_bits_where_an_earlier_version_saved_none():
    written = identity().to_dict()
    assert written.pop("states") == "auto:14"
    assert Identity.from_dict(written) == identity(states=StateFormat("int64"))


def test_differences_are_those_of_the_network_and_not_of_how_it_is_trained():
    assert identity().differences(identity(activations=rf.Store(), provenance=None)) == []
    assert identity().differences(identity(states=StateFormat("int64"))) == [], "only rounding below that of the layers"
    assert identity().differences(identity(predictor_form=None)) == ["update predictors"]
    assert identity().differences(identity(dynamics=rf.BlendedMidpoint(["1/4", 1], readout="mean"))) == ["readout"]
    assert "name" in identity().differences(identity(dynamics=rf.Midpoint()))


def test_a_network_in_words():
    assert in_words(None) == "an ordinary network"
    assert in_words(identity(dynamics=rf.Midpoint())) == (
        "a reversible network with update predictors (p[l+1] = p[l-1] + f(p[l]))"
    )
    assert "predictors" not in in_words(identity(predictor_form=None))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"dynamics": {"name": "euler"}}, "no dynamics called 'euler'"),
        ({"dynamics": 3}, "TypeError"),
        ({"activations": 3}, "activations is text, not int"),
        ({"states": 32}, "states is text, not int"),
        ({"states": "auto:99"}, "8 to 24 binary digits"),
        ({"activations": "later"}, "no activation policy 'later'"),
        ({"update_predictors": {"features": ["state"], "depth": 1}}, "depth"),
    ],
)
def test_a_description_that_cannot_be_read_is_named(change, cause):
    with pytest.raises(ModelFilesError, match=rf"^config\.json describes no network .*{cause}"):
        read_identity(identity().to_dict() | change, Path("config.json"))


def test_so_is_one_that_lacks_a_part():
    values = identity().to_dict()
    del values["update_predictors"]
    with pytest.raises(ModelFilesError, match="KeyError: 'update_predictors'"):
        read_identity(values, Path("config.json"))


def test_what_cannot_be_loaded_because_it_is_not_registered_is_told(recwarn):
    warn_of_unregistered(identity())
    assert not recwarn
    policy, dynamics = (type("Own", (kind,), {"name": "own"}) for kind in (rf.Store, rf.Midpoint))
    for changes, module in (({"dynamics": dynamics()}, "dynamics"), ({"activations": policy()}, "activations")):
        with pytest.warns(UserWarning, match=rf"Own is not registered, .* revformers\.{module}\.register\(Own\)"):
            warn_of_unregistered(identity(**changes))
