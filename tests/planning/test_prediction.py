import dataclasses

import pytest
from transformers import AutoConfig

from lab.bench.workload import llama_config
from revformers.activations import Offload
from revformers.dynamics import Residual
from revformers.models.update_predictor import PredictorForm
from revformers.planning.devices import DEVICES, Machine
from revformers.planning.model_size import meta_model
from revformers.planning.prediction import predict
from revformers.planning.setups import rebuild
from revformers.planning.step import step_memory, step_time
from revformers.setup import STORE, Setup, Workload

WORKLOAD = Workload(AutoConfig.for_model(**llama_config(3, 64, 256, 256)), 2, 64, head="own", optimizer="adamw")
MACHINE = Machine(DEVICES["h100"], 2**30)


def test_a_prediction_is_of_the_model_and_the_step():
    prediction = predict(WORKLOAD, STORE, MACHINE)
    step = step_memory(WORKLOAD, STORE, 2, 64, fused=True).device
    model = meta_model(WORKLOAD.config, 3, WORKLOAD.dtype)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert prediction.memory.total - step.total == pytest.approx(4 * weights, rel=0.01)
    assert prediction.seconds == step_time(WORKLOAD, STORE, 2, 64, MACHINE.device)
    assert prediction.host == 0


def test_offloading_holds_the_input_of_every_layer_on_the_host():
    assert predict(WORKLOAD, Setup(Residual(), Offload()), MACHINE).host == 3 * 4 * 2 * 64 * 64


def test_update_predictors_belong_to_the_model():
    form = PredictorForm(("state", "update"))
    plain, predicted = (
        predict(WORKLOAD, dataclasses.replace(rebuild(2), predictors=predictors), MACHINE)
        for predictors in (None, form)
    )
    assert predicted.memory.weights - plain.memory.weights == 4 * 3 * (2 * 64 * 64 + 64)
    assert predicted.seconds > plain.seconds
