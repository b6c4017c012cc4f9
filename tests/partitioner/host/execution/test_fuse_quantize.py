"""A quantize and its dequantizes run as one step, with the bits of separate ones."""

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import convert

from partitioner import host
from partitioner.host.execution.executor import run_plan
from partitioner.host.execution.make_plan import make_plan
from partitioner.host.execution.policy import policies

SCALE = np.float16(0.05)
ZERO_POINT = np.int8(3)
EDGES = np.array([-0.0, 0.0, -0.01, 0.025, -0.075, 6.3, 6.4, -6.4, -6.45, 1e4, -1e4, np.inf, -np.inf], np.float32)
X = np.concatenate([EDGES, np.random.default_rng(0).standard_normal(500).astype(np.float32) * 4])


def quantize(x, scale=SCALE, zero_point=ZERO_POINT, **more):
    return mb.quantize(
        input=mb.cast(x=x, dtype="fp16"), zero_point=zero_point, scale=scale, output_dtype="int8", **more
    )


def dequantize(x, scale=SCALE, zero_point=ZERO_POINT, **more):
    return mb.dequantize(input=x, zero_point=zero_point, scale=scale, **more)


def outputs_and_steps(build, x=X, *, policy, fold):
    program = host.load(convert(build, {"x": x}), policy=policy)
    function = program.mil.functions[program.functions[0]]
    plan = make_plan(function, policies[policy], fold=fold)
    outputs = run_plan(plan, {"x": host.loading.to_program(function.inputs[0], x, policies[policy])})
    return [outputs[feature.name].numpy() for feature in function.outputs], [step.op.type for step in plan.body.steps]


@pytest.mark.parametrize("policy", ["float32", "storage16"])
@pytest.mark.parametrize("scale", [SCALE, np.float16(0.0625), np.float16(5e-4)], ids=str)
@pytest.mark.parametrize("zero_point", [-128, 0, 3, 127])
def test_one_step_has_the_bits_of_two(policy, scale, zero_point):
    def build(x):
        levels = quantize(x, scale, np.int8(zero_point))
        return mb.relu(x=dequantize(levels, scale, np.int8(zero_point))), mb.square(
            x=dequantize(levels, scale, np.int8(zero_point))
        )

    folded, steps = outputs_and_steps(build, policy=policy, fold=True)
    separate, all_steps = outputs_and_steps(build, policy=policy, fold=False)
    assert [step for step in steps if "quantize" in step] == ["quantize"]
    assert sorted(step for step in all_steps if "quantize" in step) == ["dequantize", "dequantize", "quantize"]
    for one, two in zip(folded, separate, strict=True):
        np.testing.assert_array_equal(one.view(np.int32), two.view(np.int32))


UNFOLDABLE = {
    "other scale": lambda x: dequantize(quantize(x), np.float16(0.1)),
    "other zero point": lambda x: dequantize(quantize(x), zero_point=np.int8(4)),
    "levels are an output": lambda x: (mb.cast(x=(levels := quantize(x)), dtype="int32"), dequantize(levels)),
    "a scale for each channel": lambda x: dequantize(
        quantize(x, np.full(len(X), SCALE), np.zeros(len(X), np.int8), axis=np.int32(0)),
        np.full(len(X), SCALE),
        np.zeros(len(X), np.int8),
        axis=np.int32(0),
    ),
}


@pytest.mark.parametrize("case", UNFOLDABLE)
def test_what_would_change_stays_apart(case):
    folded, steps = outputs_and_steps(UNFOLDABLE[case], policy="storage16", fold=True)
    separate, all_steps = outputs_and_steps(UNFOLDABLE[case], policy="storage16", fold=False)
    assert steps == all_steps
    for one, two in zip(folded, separate, strict=True):
        np.testing.assert_array_equal(one, two)
