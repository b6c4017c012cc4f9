from concurrent.futures import ThreadPoolExecutor

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.models import MLModel
from coremltools.models.datatypes import Array
from coremltools.models.neural_network import NeuralNetworkBuilder
from helpers.mil import convert

from partitioner import host

NO_CORE_ML = "Cannot make predictions|only supported on macOS"
X = np.array([1.0, 2.0, 3.0], np.float32)


def test_predict_works_inside_the_context_and_only_there():
    model = convert(lambda x: mb.mul(x=x, y=np.float32(2.0), name="y"), {"x": X})
    originals = MLModel.predict, MLModel.make_state
    with host.patch_coremltools():
        np.testing.assert_array_equal(model.predict({"x": X})["y"], 2 * X)
        batch = model.predict([{"x": X}, {"x": -X}])
        np.testing.assert_array_equal(batch[1]["y"], -2 * X)
        with pytest.raises(KeyError, match='"z", in the input dict, does not match any of the model input name'):
            model.predict([{"x": X}, {"x": X, "z": X}])
    assert (MLModel.predict, MLModel.make_state) == originals
    with pytest.raises(Exception, match=NO_CORE_ML):
        model.predict({"x": X})


def test_the_context_ends_when_its_body_fails():
    originals = MLModel.predict, MLModel.make_state
    with pytest.raises(KeyError), host.patch_coremltools():
        raise KeyError
    assert (MLModel.predict, MLModel.make_state) == originals


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first in, first out", "nested"])
def test_contexts_that_overlap_may_end_in_any_order(order):
    model = convert(lambda x: mb.mul(x=x, y=np.float32(2.0), name="y"), {"x": X})
    originals = MLModel.predict, MLModel.make_state
    contexts = [host.patch_coremltools("float32"), host.patch_coremltools("storage16")]
    for context in contexts:
        context.__enter__()
    contexts[order[0]].__exit__(None, None, None)
    np.testing.assert_array_equal(model.predict({"x": X})["y"], 2 * X)
    contexts[order[1]].__exit__(None, None, None)
    assert (MLModel.predict, MLModel.make_state) == originals


def test_contexts_on_several_threads_leave_nothing_patched():
    originals = MLModel.predict, MLModel.make_state
    model = convert(lambda x: mb.mul(x=x, y=np.float32(2.0), name="y"), {"x": X})

    def predict(_):
        with host.patch_coremltools():
            return model.predict({"x": X})["y"].tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(predict, range(40))) == [(2 * X).tolist()] * 40
    assert (MLModel.predict, MLModel.make_state) == originals


def test_states_are_read_and_written_as_arrays():
    def build(x, memory):
        return mb.coreml_update_state(state=memory, value=mb.add(x=mb.read_state(input=memory), y=x), name="y")

    model = convert(build, {"x": X.astype(np.float16)}, ios=18, states={"memory": (3,)})
    with host.patch_coremltools():
        state = model.make_state()
        model.predict({"x": X}, state=state)
        assert state.read_state("memory").tolist() == X.tolist()
        state.write_state("memory", np.full(3, 5.0, np.float16))
        assert model.predict({"x": X}, state=state)["y"].tolist() == (X + 5).tolist()
        with pytest.raises(RuntimeError, match=r"no state 'other'; the model has \['memory'\]"):
            state.read_state("other")
        with pytest.raises(RuntimeError, match=r"got shape \(2,\), expected \(3\)"):
            state.write_state("memory", np.zeros(2, np.float16))


def test_whole_floats_pass_for_integers_as_in_core_ml():
    model = convert(lambda x: mb.add(x=x, y=np.int32(1), name="y"), {"x": np.array([1, 2], np.int32)})
    with host.patch_coremltools():
        assert model.predict({"x": np.array([1.0, 2.0], np.float32)})["y"].tolist() == [2, 3]
        with pytest.raises(host.InputError, match=r"got torch.float32, expected int32"):
            model.predict({"x": np.array([1.5, 2.0], np.float32)})


def test_the_policy_is_the_contexts():
    x = np.array([2049.0, 1.0], np.float32)
    model = convert(lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32", name="y"), {"x": x})
    for policy, expected in (("float32", 2049.0), ("storage16", 2048.0)):
        with host.patch_coremltools(policy):
            assert model.predict({"x": x})["y"][0] == expected


def _neural_network():
    builder = NeuralNetworkBuilder([("x", Array(3))], [("y", Array(3))])
    builder.add_activation("a", "RELU", "x", "y")
    return ct.models.MLModel(builder.spec, skip_model_load=True)


def test_other_models_are_refused_where_core_ml_is_not():
    model = _neural_network()
    with pytest.raises(host.ProgramFormatError) as loaded:
        host.load(model)
    assert "not an ML Program: the model is of type neuralNetwork" in str(loaded.value)
    with host.patch_coremltools():
        for call in (lambda: model.predict({"x": X}), lambda: model.predict([{"x": X}]), model.make_state):
            with pytest.raises(host.ProgramFormatError) as predicted:
                call()
            assert str(predicted.value) == str(loaded.value)


def test_other_models_that_core_ml_loaded_keep_their_behavior():
    class Framework:
        def predict(self, data, state):
            return {"y": -data["x"]}

    model = _neural_network()
    model.__proxy__ = Framework()
    with host.patch_coremltools():
        np.testing.assert_array_equal(model.predict({"x": X})["y"], -X)
