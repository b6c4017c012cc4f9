"""A batch norm that keeps no statistics, as weight standardization uses it, is the same in both modes."""

import torch
import torch.nn.functional as F
from helpers.trained_networks import IMAGE, batches
from torch import Tensor, nn
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from coreml_quantizer import CoreMLQuantizer


class StandardizedConv(nn.Conv2d):
    """Qiao et al. 2019."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


def exported() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    model = nn.Sequential(StandardizedConv(3, 4, 3), nn.ReLU()).eval()
    return torch.export.export(model, (torch.randn(IMAGE),)).module()


def test_it_calibrates() -> None:
    (batch,) = batches(1)
    expected = exported()(batch)
    prepared = prepare_pt2e(exported(), CoreMLQuantizer())
    prepared(batch)
    assert (convert_pt2e(prepared)(batch) - expected).abs().max() < 0.03 * expected.max()


def test_it_trains() -> None:
    (batch,) = batches(1)
    expected = exported()(batch)
    quantizer = CoreMLQuantizer()
    prepared = prepare_qat_pt2e(exported(), quantizer)
    prepared(batch).sum().backward()
    quantizer.step()
    move_exported_model_to_eval(prepared)
    assert (convert_pt2e(prepared)(batch) - expected).abs().max() < 0.03 * expected.max()
