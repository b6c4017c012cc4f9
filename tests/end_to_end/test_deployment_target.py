"""A deployment target that is too low is refused with the entries of the configuration that ask for more."""

from dataclasses import replace

import coremltools as ct
import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, presets
from coreml_quantizer.placement.decisions import ENTRY_KEY
from partitioner import CoreMLBackend, CoreMLPartitioner, lower
from partitioner.errors import DeploymentTargetError
from partitioner.support import requirements

X = (torch.linspace(-1, 1, 64).reshape(2, 32),)


def test_both_packages_name_entries_alike() -> None:
    assert ENTRY_KEY == requirements.ENTRY_KEY


def test_the_entry_that_asks_for_four_bits_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    config = replace(presets.w8(), modules={"2": presets.w4().default})
    prepared = prepare_pt2e(torch.export.export(model, X).module(), CoreMLQuantizer(config))
    program = torch.export.export(convert_pt2e(prepared), X)
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS16)
    with pytest.raises(DeploymentTargetError) as error:
        lower(program, partitioner=CoreMLPartitioner(compile_specs=specs))
    message = str(error.value)
    assert "weights of 4 bits or fewer need iOS18" in message
    assert "asked for by module_name 2" in message
    assert "module_name 0" not in message
