"""A check for convolutions that are called several times, each time with a batch norm after them.

torchao folds these batch norms wrongly. Its `prepare_pt2e` folds the first of them into the weight that all calls
share, and drops the others. If the convolution has no bias, folding gives it one, and torchao sets that to zero again.
torchao calls the quantizer only afterwards. The quantizer then sees only what is left: a bias named after the weight,
and batch norms that nothing reads.
"""

import warnings
from collections import Counter
from collections.abc import Iterator

from torch.fx import GraphModule, Node

from coreml_quantizer.errors import QuantizerError
from coreml_quantizer.graph.convolutions import CONVOLUTIONS

_REMEDY = (
    "Fold before preparing: prepare_pt2e(fold_batch_norms(exported.module()), quantizer), with fold_batch_norms from "
    "coreml_quantizer, which gives every call a weight of its own."
)
_STATISTICS = ".running_var"


def refuse_wrong_folding(graph_module: GraphModule) -> None:
    """Refuses a graph in which a batch norm was folded into a weight that several calls share.

    It warns if this cannot be decided: the convolution had a bias before, and a batch norm with as many channels is
    gone that was folded into no other convolution.

    Raises:
        QuantizerError: A batch norm was folded into a shared weight; the message names the weight.
    """
    calls = _calls(graph_module)
    shared = {weight: found for weight, found in calls.items() if len(found) > 1}
    if not shared:
        return
    gone = Counter(_channels_of_unread_batch_norms(graph_module))
    gone.subtract(_channels(found[0]) for weight, found in calls.items() if _is_folded(weight, found))
    for weight, found in shared.items():
        used = f"'{weight}' is used by {len(found)} calls ({', '.join(call.name for call in found)})"
        if _is_folded(weight, found):
            raise QuantizerError(
                f"{used}, and prepare_pt2e has folded a batch norm into it, so that other calls compute something "
                f"else now. {_REMEDY}"
            )
        if gone[_channels(found[0])] > 0:
            warnings.warn(
                f"{used}. If each has a batch norm of its own, prepare_pt2e has dropped all but one. {_REMEDY}",
                stacklevel=2,
            )


def _calls(graph_module: GraphModule) -> dict[str, list[Node]]:
    """Returns the calls of convolutions by the name of the weight that they read."""
    calls: dict[str, list[Node]] = {}
    for node in graph_module.graph.nodes:
        weight = node.args[1] if node.target in CONVOLUTIONS else None
        if isinstance(weight, Node) and weight.op == "get_attr":
            calls.setdefault(str(weight.target), []).append(node)
    return calls


def _is_folded(weight: str, calls: list[Node]) -> bool:
    """Returns whether a bias has the name that torchao gives to a bias that folding adds."""
    biases = (call.args[2] for call in calls if len(call.args) > 2)
    return any(isinstance(bias, Node) and bias.target == f"{weight}_bias" for bias in biases)


def _channels(call: Node) -> int:
    weight = call.args[1]
    assert isinstance(weight, Node)
    return int(call.meta["val"].shape[1 - weight.meta["val"].ndim])


def _channels_of_unread_batch_norms(graph_module: GraphModule) -> Iterator[int]:
    read = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name, buffer in graph_module.named_buffers():
        if name.endswith(_STATISTICS) and name not in read:
            yield buffer.numel()
