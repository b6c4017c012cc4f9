"""The time of `prepare_pt2e` grows with the number of nodes, and hardly with the number of names.

CPU time of this process is measured, the best of several runs, so that other processes hardly matter.
"""

import gc
import time
from collections.abc import Callable

import pytest
import torch
from helpers.graphs import QDQ, calls
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, fold_batch_norms

aten = torch.ops.aten
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


def convolutional_network(blocks: int) -> GraphModule:
    """A graph of convolution, batch norm, ReLU and residual addition, of as many nodes a block."""
    root, graph = nn.Module(), Graph()
    value = FakeTensorMode().from_tensor(torch.zeros(1, 4, 2, 2))

    def node(target: object, *args: object) -> Node:
        made = graph.get_attr(target) if isinstance(target, str) else graph.call_function(target, args)  # type: ignore[arg-type]
        made.meta = {"val": value, "nn_module_stack": {}}
        return made

    y = graph.placeholder("x")
    y.meta["val"] = value
    for index in range(blocks):
        root.register_parameter(f"w{index}", nn.Parameter(torch.eye(4)[:, :, None, None]))
        for name in ("a", "b", "c", "d"):
            root.register_buffer(f"{name}{index}", torch.ones(4))
        convolved = node(aten.conv2d.default, y, node(f"w{index}"))
        statistics = [node(f"{name}{index}") for name in ("a", "b", "c", "d")]
        normed = node(aten.batch_norm.default, convolved, *statistics, False, 0.1, 1e-5, True)
        y = node(aten.add.Tensor, node(aten.relu.default, normed), y)
    graph.output((node(aten.relu.default, y),))
    return GraphModule(root, graph)


def seconds(blocks: int, config: object = None, network: Callable[[int], GraphModule] = residual_network) -> float:
    graph = network(blocks)
    quantizer = CoreMLQuantizer(config)
    gc.collect()
    start = time.process_time()
    prepare_pt2e(fold_batch_norms(graph) if network is convolutional_network else graph, quantizer)
    return time.process_time() - start


def ratio(large: Callable[[], float], small: Callable[[], float], rounds: int) -> float:
    """How many times as long the one takes as the other, each the best of several runs.

    They take turns, so that times in which the machine is slow do not fall on one of them alone.
    """
    large(), small()
    times = [(large(), min(small() for _ in range(3))) for _ in range(rounds)]
    return min(time for time, _ in times) / min(time for _, time in times)


def test_the_network_is_quantized() -> None:
    prepared = prepare_pt2e(residual_network(3), CoreMLQuantizer())
    prepared(torch.ones(2, 4))
    # In each block what linear and addition read, and what ReLU makes; the norm reads the sum in floating point.
    assert len(calls(convert_pt2e(prepared), QDQ.quantize_per_tensor)) == 3 * 2


def test_time_is_linear_in_nodes() -> None:
    measured = ratio(lambda: seconds(40 * FACTOR), lambda: seconds(40), rounds=5)
    assert measured <= LARGEST_RATIO, f"{FACTOR} times the nodes take {measured:.1f} times as long"


@pytest.mark.slow
@pytest.mark.parametrize("network", [residual_network, convolutional_network], ids=lambda network: network.__name__)
def test_time_is_linear_up_to_20000_nodes(network: Callable[[int], GraphModule]) -> None:
    per_block = (len(network(20).graph.nodes) - len(network(10).graph.nodes)) // 10
    large, small = (lambda nodes=nodes: seconds(nodes // per_block, network=network) for nodes in (20_000, 2_000))
    measured = ratio(large, small, rounds=5)
    assert measured <= LARGEST_RATIO, f"20,000 nodes take {measured:.1f} times as long as 2,000"


def test_ten_names_cost_little() -> None:
    names = {f"blocks.{index}": {"activation_observer": "min_max"} for index in range(0, 50, 5)}
    plain = {"global_config": {}}
    named = {**plain, "module_name_configs": names}
    measured = ratio(lambda: seconds(50, named), lambda: seconds(50, plain), rounds=2)
    assert measured <= 1.5, f"ten name entries make it {measured:.2f} times as slow"
