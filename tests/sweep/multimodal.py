"""Models of images and text together, and of time series."""

import torch
from sweep.entry import Entry
from sweep.text import LENGTH, VOCABULARY
from torch import Tensor

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "projection_dim": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 32,
}
_PAIR = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 32}
_EMBEDDINGS = ("text_embeds", "image_embeds")


def _pair() -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(3, VOCABULARY, (1, LENGTH)),
        "pixel_values": torch.randn(1, 3, 32, 32),
        "attention_mask": torch.ones(1, LENGTH, dtype=torch.long),
    }


def _regions() -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(3, VOCABULARY, (1, LENGTH)),
        "visual_feats": torch.randn(1, 4, 24),
        "visual_pos": torch.rand(1, 4, 4),
    }


def _visual_bert() -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(3, VOCABULARY, (1, LENGTH)),
        "attention_mask": torch.ones(1, LENGTH, dtype=torch.long),
        "visual_embeds": torch.randn(1, 4, 24),
        "visual_attention_mask": torch.ones(1, 4, dtype=torch.long),
    }


def _layout() -> dict[str, Tensor]:
    corners = torch.randint(0, 50, (1, LENGTH, 2))
    return {
        "input_ids": torch.randint(3, VOCABULARY, (1, LENGTH)),
        "bbox": torch.cat([corners, corners + 10], dim=-1),
        "attention_mask": torch.ones(1, LENGTH, dtype=torch.long),
    }


ENTRIES = {
    "clip": Entry("CLIPModel", _pair, _PAIR, _EMBEDDINGS),
    "siglip": Entry("SiglipModel", _pair, {"text_config": _TEXT, "vision_config": _VISION}, _EMBEDDINGS),
    "chinese_clip": Entry("ChineseCLIPModel", _pair, _PAIR, _EMBEDDINGS),
    "altclip": Entry("AltCLIPModel", _pair, {**_PAIR, "text_config": {**_TEXT, "project_dim": 32}}, _EMBEDDINGS),
    "clipseg": Entry("CLIPSegModel", _pair, _PAIR, _EMBEDDINGS),
    # Its vision model is initialized with 1e-10 by default, which is nothing in float16.
    "blip": Entry(
        "BlipModel",
        _pair,
        {"projection_dim": 32, "text_config": {**_TEXT, "encoder_hidden_size": 32}}
        | {"vision_config": {**_VISION, "initializer_range": 0.02}},
        _EMBEDDINGS,
    ),
    "git": Entry("GitModel", _pair, {**_TEXT, "vision_config": _VISION, "use_cache": False}),
    "lxmert": Entry(
        "LxmertModel",
        _regions,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
        | {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 24, "max_position_embeddings": 64},
    ),
    "visual_bert": Entry("VisualBertModel", _visual_bert, {**_TEXT, "visual_embedding_dim": 24}),
    "layoutlm": Entry("LayoutLMModel", _layout, {**_TEXT, "max_2d_position_embeddings": 128}),
    "patchtst": Entry(
        "PatchTSTForPrediction",
        lambda: {"past_values": torch.randn(1, 32, 2)},
        {"num_input_channels": 2, "context_length": 32, "prediction_length": 8, "patch_length": 8, "patch_stride": 8}
        | {"d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "loss": "mse"},
    ),
}
