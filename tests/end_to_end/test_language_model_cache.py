"""A quantized language model with a static cache, which Core ML holds as states, token by token."""

import coremltools as ct
import pytest
import torch
from executorch.runtime import Runtime
from helpers.models import signal_to_noise
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from coreml_quantizer import CoreMLQuantizer, calibrate
from partitioner import CoreMLBackend, CoreMLPartitioner, host, lower

FLOAT32 = 50.0
TOKENS = 10


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["w8", "w8a8", "w4_block32"])
def test_every_token_agrees_with_the_converted_graph(preset: str) -> None:
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=32, **sizes)).eval()
    model.generation_config = GenerationConfig(
        use_cache=True,
        cache_implementation="static",
        max_length=16,
        cache_config={"batch_size": 1, "max_cache_len": 16},
    )
    first = {"input_ids": torch.tensor([[1]]), "cache_position": torch.tensor([0])}
    text = [
        {"input_ids": token.reshape(1, 1), "cache_position": torch.tensor([place])}
        for place, token in enumerate(torch.randint(0, 64, (TOKENS,)))
    ]
    exported = TorchExportableModuleForDecoderOnlyLM(model).export(**first)
    prepared = prepare_pt2e(exported.module(), CoreMLQuantizer(preset))
    calibrate(prepared, text)
    with torch.no_grad():
        quantized = torch.export.export(convert_pt2e(prepared), (), first)
    compile_specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS18)
    lowered = lower(quantized, partitioner=CoreMLPartitioner(compile_specs=compile_specs))
    assert lowered.report[0].partitions == 1
    host.enable(policy="float32")
    method = Runtime.get().load_program(bytes(lowered.buffer)).load_method("forward")
    reference = quantized.module()
    for step in text:
        with torch.no_grad():
            expected = reference(**step)
        assert signal_to_noise(expected, method.execute(list(step.values()))[0]) >= FLOAT32
