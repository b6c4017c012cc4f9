import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import convert, run

from partitioner import host

X = np.array([1.0, 2.0, 3.0], np.float32)


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_branches_see_outer_values_and_reuse_names(value):
    def build(x, p):
        doubled = mb.mul(x=x, y=2.0)
        return mb.cond(
            pred=mb.squeeze(x=mb.greater(x=p, y=0.0)),
            _true_fn=lambda: mb.add(x=doubled, y=1.0, name="inner"),
            _false_fn=lambda: mb.sub(x=x, y=1.0),
        )

    (output,) = run(build, {"x": X, "p": np.array([value], np.float32)})
    np.testing.assert_array_equal(output, 2 * X + 1 if value > 0 else X - 1)


def test_loops_run_until_their_condition_fails():
    def build(x, n):
        def body(i, total, n):
            # The constant of the body is read in every iteration.
            return mb.add(x=i, y=np.float32(1.0)), mb.add(x=total, y=mb.mul(x=x, y=i)), n

        start = mb.mul(x=n, y=0.0)
        _, total, _ = mb.while_loop(
            _cond=lambda i, total, n: mb.squeeze(x=mb.less(x=i, y=n)),
            _body=body,
            loop_vars=(start, mb.mul(x=x, y=0.0), n),
        )
        return total

    for count in (0, 1, 5):
        (output,) = run(build, {"x": X, "n": np.array([count], np.float32)})
        np.testing.assert_array_equal(output, X * sum(range(count)))


def test_lists_are_values():
    def build(x):
        empty = mb.make_list(init_length=2, elem_shape=[3], dtype="fp32")
        first = mb.list_write(ls=empty, index=0, value=x)
        second = mb.list_write(ls=first, index=3, value=mb.mul(x=x, y=2.0))
        scattered = mb.list_scatter(ls=first, indices=[0, 1], value=mb.stack(values=(x, x), axis=0))
        return [
            mb.list_read(ls=first, index=0),
            mb.list_read(ls=first, index=1),
            mb.list_gather(ls=second, indices=[3, 0]),
            mb.list_length(ls=second),
            mb.list_read(ls=scattered, index=1),
        ]

    outputs = run(build, {"x": X})
    expected = [X, 0 * X, np.stack([2 * X, X]), np.int32(4), X]
    for output, reference in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output, reference)


def _counter():
    def build(x, memory):
        total = mb.add(x=mb.read_state(input=memory), y=x)
        return mb.coreml_update_state(state=memory, value=total, name="total")

    return convert(build, {"x": X.astype(np.float16)}, ios=18, states={"memory": (3,)})


def test_states_outlive_runs_and_start_at_zero():
    program = host.load(_counter())
    state, other = program.make_state(), program.make_state()
    totals = [program.predict({"x": X}, state)["total"].tolist() for _ in range(3)]
    assert totals == [(X * count).tolist() for count in (1, 2, 3)]
    assert program.predict({"x": X}, other)["total"].tolist() == X.tolist()
    assert state["memory"].value.dtype == torch.float32
    with pytest.raises(host.InputError, match=r"needs the states \['memory'\], got none; pass make_state\(\)"):
        program.predict({"x": X})


def test_states_are_rounded_as_they_are_declared():
    program = host.load(_counter())
    state = program.make_state()
    program.predict({"x": np.full(3, 2048.0, np.float32)}, state)
    # 2049 lies between two halves; ties go to the even one.
    assert program.predict({"x": np.ones(3, np.float32)}, state)["total"].tolist() == [2048.0] * 3


def test_functions_are_chosen_by_name(tmp_path):
    paths = []
    for index, factor in enumerate((2.0, 3.0)):
        model = convert(lambda x, factor=factor: mb.mul(x=x, y=np.float32(factor), name="y"), {"x": X}, ios=18)
        paths.append(str(tmp_path / f"{index}.mlpackage"))
        model.save(paths[-1])
    descriptor = ct.utils.MultiFunctionDescriptor()
    descriptor.add_function(paths[0], "main", "double")
    descriptor.add_function(paths[1], "main", "triple")
    descriptor.default_function_name = "triple"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    program = host.load(tmp_path / "both.mlpackage")
    assert program.functions == ("triple", "double")
    for name, factor in (("double", 2.0), ("triple", 3.0), (None, 3.0)):
        (output,) = program.run([torch.from_numpy(X)], function=name)
        np.testing.assert_array_equal(output.numpy(), factor * X)


def test_random_tensors_follow_their_distribution_and_seed():
    count = 20_000

    def build(x):
        size = [count]
        return [
            mb.random_normal(shape=size, mean=2.0, stddev=0.5, seed=7),
            mb.random_uniform(shape=size, low=-1.0, high=3.0, seed=7),
            mb.random_bernoulli(shape=size, prob=0.25, seed=7),
            mb.random_categorical(x=x, mode="logits", size=count, seed=7),
            mb.random_uniform(shape=size, seed=-1),
        ]

    logits = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    program = host.load(convert(build, {"x": logits}))
    first, second = ([value.numpy() for value in program.run([torch.from_numpy(logits)])] for _ in range(2))
    for mean, deviation, values in ((2.0, 0.5, first[0]), (1.0, 4 / 12**0.5, first[1]), (0.25, 0.1875**0.5, first[2])):
        # Five standard errors of the mean.
        assert abs(values.mean() - mean) < 5 * deviation / count**0.5
    assert abs((first[3] == 0).mean() - 0.5) < 5 * 0.5 / count**0.5
    assert [np.array_equal(a, b) for a, b in zip(first, second, strict=True)] == [True] * 4 + [False]


def test_classifiers_return_a_label_and_probabilities():
    x = np.log(np.array([[0.125, 0.625, 0.25]], np.float32))

    @mb.program(input_specs=[mb.TensorSpec((1, 3))], opset_version=ct.target.iOS16)
    def prog(x):
        return mb.softmax(x=x, name="p")

    labels = ["cat", "dog", "owl"]
    model = ct.convert(
        prog,
        classifier_config=ct.ClassifierConfig(labels),
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    result = host.load(model).predict({"x": x})
    assert result["classLabel"] == "dog"
    probabilities = dict(zip(labels, (0.125, 0.625, 0.25), strict=True))
    assert result["classLabel_probs"] == pytest.approx(probabilities, rel=8 * 2**-23)


def test_the_declared_types_of_states_are_read():
    (state,) = host.load(_counter()).mil.functions["main"].states
    assert (state.name, state.dtype.name, state.shape) == ("memory", "fp16", (3,))
