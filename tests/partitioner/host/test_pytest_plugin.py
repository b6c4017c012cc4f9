import subprocess
import sys

import pytest

PREDICTS = """
import coremltools as ct
import numpy as np
from coremltools.converters.mil import testing_utils
from coremltools.converters.mil.mil import Builder as mb

@mb.program(input_specs=[mb.TensorSpec((1, 2))], opset_version=ct.target.iOS16)
def program(x):
    return mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32", name="y")

def test_predict():
    model = ct.convert(program, minimum_deployment_target=ct.target.iOS16,
                       pass_pipeline=ct.PassPipeline.EMPTY, skip_model_load=True)
    x = np.array([[2049.0, 1.0]], np.float32)
    testing_utils.compare_backend(model, {"x": x}, {"y": np.array([[EXPECTED, 1.0]])})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "expected", "passed"), [("float32", 2049.0, True), ("storage16", 9000.0, False)])
def test_comparisons_of_core_ml_tools_compare_numbers(tmp_path, policy, expected, passed):
    pytest.importorskip("PIL")
    (tmp_path / "test_it.py").write_text(PREDICTS.replace("EXPECTED", str(expected)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "partitioner.host.pytest_plugin", "--coreml-policy", policy]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (result.returncode == 0) is passed, result.stdout
    assert ("1 passed" if passed else "1 failed") in result.stdout
