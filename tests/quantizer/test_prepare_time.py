"""The time of `prepare_pt2e` grows with the number of nodes, and hardly with the number of names.

CPU time of this process is measured, the best of several runs, so that other processes hardly matter.
"""

import gc
import time

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer

from .graphs import QDQ, calls

aten = torch.ops.aten
CALLS_PER_BLOCK = 6
NODES_PER_BLOCK = CALLS_PER_BLOCK + 4
FACTOR, LARGEST_RATIO = 10, 12.0
"""Ten times the nodes may take twelve times as long."""


def residual_network(blocks: int) -> GraphModule:
    """A graph of linear, ReLU, residual addition, reshape, norm and scaling, as torch.export makes it, but at once."""
    root, graph = nn.Module(), Graph()
    value = FakeTensorMode().from_tensor(torch.zeros(2, 4))
    path = ""

    def node(target: object, *args: object) -> Node:
        made = graph.get_attr(target) if isinstance(target, str) else graph.call_function(target, args)  # type: ignore[arg-type]
        made.meta = {"val": value, "nn_module_stack": {path: (path, "torch.nn.modules.linear.Linear")}}
        return made

    x = graph.placeholder("x")
    x.meta["val"] = value
    y: Node = x
    for index in range(blocks):
        path = f"blocks.{index}"
        for name in ("a", "b", "c", "d"):
            root.register_parameter(f"{name}{index}", nn.Parameter(torch.eye(4)[: 4 if name == "a" else 1].squeeze(0)))
        weight, bias, gamma, beta = (node(f"{name}{index}") for name in ("a", "b", "c", "d"))
        hidden = node(aten.relu.default, node(aten.linear.default, y, weight, bias))
        summed = node(aten.reshape.default, node(aten.add.Tensor, hidden, y), [2, 4])
        y = node(aten.mul.Tensor, node(aten.layer_norm.default, summed, [4], gamma, beta), 0.5)
    graph.output((y,))
    return GraphModule(root, graph)


def seconds(blocks: int, config: object = None, repeats: int = 2) -> float:
    best = float("inf")
    for _ in range(repeats):
        graph = residual_network(blocks)
        quantizer = CoreMLQuantizer(config)
        gc.collect()
        start = time.process_time()
        prepare_pt2e(graph, quantizer)
        best = min(best, time.process_time() - start)
    return best


def test_the_network_is_quantized() -> None:
    prepared = prepare_pt2e(residual_network(3), CoreMLQuantizer())
    prepared(torch.ones(2, 4))
    # In each block what linear and addition read, and what ReLU makes; the norm reads the sum in floating point.
    assert len(calls(convert_pt2e(prepared), QDQ.quantize_per_tensor)) == 3 * 2


def test_time_is_linear_in_nodes() -> None:
    seconds(10, repeats=1)
    ratio = seconds(40 * FACTOR) / seconds(40)
    assert ratio <= LARGEST_RATIO, f"{FACTOR} times the nodes take {ratio:.1f} times as long"


@pytest.mark.slow
def test_time_is_linear_up_to_20000_nodes() -> None:
    seconds(10, repeats=1)
    small, large = 2000 // NODES_PER_BLOCK, 20000 // NODES_PER_BLOCK
    ratio = seconds(large, repeats=2) / seconds(small)
    assert ratio <= LARGEST_RATIO, f"20,000 nodes take {ratio:.1f} times as long as 2,000"


def test_ten_names_cost_little() -> None:
    names = {f"blocks.{index}": {"activation_observer": "min_max"} for index in range(0, 50, 5)}
    seconds(10, repeats=1)
    plain = {"global_config": {}}
    ratio = seconds(50, {**plain, "module_name_configs": names}) / seconds(50, plain)
    assert ratio <= 1.5, f"ten name entries make it {ratio:.2f} times as slow"
