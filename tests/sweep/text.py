"""Text encoders, decoders and sequence-to-sequence models."""

import torch
from sweep.entry import Entry
from torch import Tensor

VOCABULARY = 100
LENGTH = 16

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_DECODER = {**_SIZES, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_DISTIL = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def _ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (1, LENGTH))


def _masked() -> dict[str, Tensor]:
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[0, LENGTH - 4 :] = 0
    return {"input_ids": _ids(), "attention_mask": mask}


def _plain() -> dict[str, Tensor]:
    return {"input_ids": _ids()}


def _translated() -> dict[str, Tensor]:
    return {**_masked(), "decoder_input_ids": torch.randint(3, VOCABULARY, (1, 8))}


ENCODERS = {
    "bert": Entry("BertModel", _masked, _SIZES),
    "distilbert": Entry("DistilBertModel", _masked, _DISTIL),
    "roberta": Entry("RobertaModel", _masked, _SIZES),
    "albert": Entry("AlbertModel", _masked, {**_SIZES, "embedding_size": 16}),
    "electra": Entry("ElectraModel", _masked, {**_SIZES, "embedding_size": 16}),
    "mobilebert": Entry(
        "MobileBertModel",
        _masked,
        {**_SIZES, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    ),
    "mpnet": Entry("MPNetModel", _masked, _SIZES),
    "deberta": Entry("DebertaModel", _masked, {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta_v2": Entry(
        "DebertaV2Model", _masked, {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    ),
    "convbert": Entry("ConvBertModel", _masked, {**_SIZES, "embedding_size": 32}),
    "squeezebert": Entry("SqueezeBertModel", _masked, {**_SIZES, "embedding_size": 32}),
    "roformer": Entry("RoFormerModel", _masked, {**_SIZES, "embedding_size": 32}),
    "modernbert": Entry(
        "ModernBertModel",
        _masked,
        {**_SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "esm": Entry("EsmModel", _masked, {**_SIZES, "pad_token_id": 0, "mask_token_id": 4}),
    "nystromformer": Entry("NystromformerModel", _masked, {**_SIZES, "segment_means_seq_len": 64, "num_landmarks": 64}),
}

DECODERS = {
    "gpt2": Entry("GPT2Model", _masked, _GPT),
    "gpt_neo": Entry(
        "GPTNeoModel",
        _masked,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "window_size": 8,
            "use_cache": False,
        },
    ),
    "gpt_neox": Entry("GPTNeoXModel", _masked, _DECODER),
    "gptj": Entry("GPTJModel", _masked, {**_GPT, "rotary_dim": 4}),
    "opt": Entry("OPTModel", _masked, {**_DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": Entry(
        "BloomModel",
        _masked,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    "llama": Entry("LlamaModel", _masked, _GROUPED),
    "mistral": Entry("MistralModel", _masked, {**_GROUPED, "sliding_window": 8}),
    "qwen2": Entry("Qwen2Model", _masked, _GROUPED),
    "qwen3": Entry("Qwen3Model", _masked, {**_GROUPED, "head_dim": 8}),
    "gemma": Entry("GemmaModel", _masked, {**_GROUPED, "head_dim": 8}),
    "gemma2": Entry("Gemma2Model", _masked, {**_GROUPED, "head_dim": 8, "sliding_window": 8}),
    "gemma3": Entry("Gemma3TextModel", _masked, {**_GROUPED, "head_dim": 8, "sliding_window": 8}),
    "phi": Entry("PhiModel", _masked, _DECODER),
    "phi3": Entry("Phi3Model", _masked, _GROUPED),
    "falcon": Entry("FalconModel", _masked, {**_DECODER, "alibi": False}),
    "stablelm": Entry("StableLmModel", _masked, _GROUPED),
    "olmo2": Entry("Olmo2Model", _masked, _GROUPED),
    "smollm3": Entry("SmolLM3Model", _masked, _GROUPED),
    "mpt": Entry(
        "MptModel",
        _masked,
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "use_cache": False},
    ),
    "mamba": Entry(
        "MambaModel",
        _plain,
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "use_cache": False},
    ),
}

SEQUENCE_TO_SEQUENCE = {
    "t5": Entry("T5Model", _translated, _T5),
    "mt5": Entry("MT5Model", _translated, _T5),
    "bart": Entry("BartModel", _translated, _BART),
    "marian": Entry("MarianModel", _translated, _BART),
    "pegasus": Entry("PegasusModel", _translated, _BART),
    "m2m100": Entry("M2M100Model", _translated, _BART),
}
