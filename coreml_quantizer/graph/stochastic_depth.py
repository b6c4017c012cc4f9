"""Rewriting of stochastic depth, which drops whole branches of some samples, to an operator that follows the mode.

Libraries write it as a product with random numbers of shape (batch, 1, ...). In an exported graph this product does not
know that the model evaluates, and it would stay random. It becomes a dropout, which follows the model's mode and is
gone once the model is converted. Source of the idea: Huang et al. 2016, Deep Networks with Stochastic Depth.
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

AXES = "stochastic_depth"
"""Key of `Node.meta`: the axes along which a dropout decides for each index; along the others it drops or keeps all."""

_EMPTY = (aten.empty.memory_format, aten.new_empty.default)
_DIVIDED = (aten.div_.Tensor, aten.div.Tensor, aten.div_.Scalar, aten.div.Scalar)
_FLOORS = (aten.floor_.default, aten.floor.default)


def mark_stochastic_depth(graph_module: GraphModule) -> None:
    """Replaces products with random numbers by dropouts with `AXES` in their meta, in place."""
    changed = False
    for node in list(graph_module.graph.nodes):
        if node.target is not aten.mul.Tensor or not all(isinstance(value, Node) for value in node.args):
            continue
        for kept, noise in (node.args, node.args[::-1]):
            found = _scaled_noise(kept, noise) or _floored_noise(kept, noise)
            if found is not None and _spreads(noise, node):
                _replace(node, noise, *found)
                changed = True
                break
    if changed:
        graph_module.recompile()


def _scaled_noise(kept: Any, noise: Any) -> tuple[Node, float] | None:
    """Matches `x * bernoulli(p).div(p)`, as torchvision and timm write it; returns `x` and `p`."""
    drawn = _only_source(noise, _DIVIDED)
    if drawn is None or _only_source(drawn, (aten.bernoulli_.float,), _EMPTY) is None:
        return None
    probability: Any = drawn.args[1]
    if probability != noise.args[1]:
        return None
    return kept, probability


def _floored_noise(kept: Any, noise: Any) -> tuple[Node, float] | None:
    """Matches `x.div(p) * floor(rand + p)`, as Hugging Face's transformers write it; returns `x` and `p`."""
    summed = _only_source(noise, _FLOORS, (aten.add.Tensor,))
    if summed is None or _only_source(summed, (aten.add.Tensor,), (aten.rand.default,)) is None:
        return None
    probability: Any = summed.args[1]
    if kept.target not in _DIVIDED or kept.args[1] != probability:
        return None
    return kept.args[0], probability


def _only_source(node: Node, targets: tuple[Any, ...], sources: tuple[Any, ...] | None = None) -> Node | None:
    """Returns the first operand of `node`, if `node` calls one of `targets` and both have only one reader.

    The operand must call one of `sources`, if these are given; None is returned otherwise.
    """
    source = node.args[0] if node.target in targets else None
    if not isinstance(source, Node) or len(node.users) != 1 or len(source.users) != 1:
        return None
    return source if sources is None or source.target in sources else None


def _spreads(noise: Node, product: Node) -> bool:
    """Returns whether every dimension of the noise has size one, or the size of the product there."""
    sizes, whole = noise.meta["val"].shape, product.meta["val"].shape
    return len(sizes) == len(whole) and all(size in (1, other) for size, other in zip(sizes, whole, strict=True))


def _replace(product: Node, noise: Node, x: Node, probability: float) -> None:
    sizes = noise.meta["val"].shape
    product.meta[AXES] = tuple(axis for axis, size in enumerate(sizes) if not (isinstance(size, int) and size == 1))
    sources = [value for value in product.args if isinstance(value, Node)]
    product.target, product.args = aten.dropout.default, (x, 1.0 - probability, True)
    while sources:
        unused = sources.pop()
        if not unused.users and unused.op == "call_function":
            sources.extend(unused.all_input_nodes)
            unused.graph.erase_node(unused)
