"""Speech and audio models, on waveforms and on spectrograms."""

import torch
from sweep.entry import Entry
from torch import Tensor

_WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16],
    "conv_kernel": [8, 4],
    "conv_stride": [4, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}
_WHISPER = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "max_target_positions": 16,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_SPEECH_TO_TEXT = {key: value for key, value in _WHISPER.items() if key not in ("num_mel_bins",)} | {
    "input_feat_per_channel": 16,
    "conv_channels": 16,
    "num_conv_layers": 2,
    "max_source_positions": 64,
}


def _wave() -> dict[str, Tensor]:
    return {"input_values": torch.randn(1, 800)}


def _whisper() -> dict[str, Tensor]:
    return {"input_features": torch.randn(1, 16, 64), "decoder_input_ids": torch.randint(3, 100, (1, 8))}


def _spectrogram() -> dict[str, Tensor]:
    return {"input_values": torch.randn(1, 32, 16)}


def _speech_to_text() -> dict[str, Tensor]:
    return {"input_features": torch.randn(1, 64, 16), "decoder_input_ids": torch.randint(3, 100, (1, 8))}


ENTRIES = {
    "wav2vec2": Entry("Wav2Vec2Model", _wave, _WAVE),
    "hubert": Entry("HubertModel", _wave, _WAVE),
    "wavlm": Entry("WavLMModel", _wave, _WAVE),
    "unispeech": Entry("UniSpeechModel", _wave, _WAVE),
    "sew": Entry("SEWModel", _wave, {**_WAVE, "squeeze_factor": 2}),
    "data2vec_audio": Entry("Data2VecAudioModel", _wave, {**_WAVE, "conv_pos_kernel_size": 3}),
    "wav2vec2_conformer": Entry("Wav2Vec2ConformerModel", _wave, {**_WAVE, "conv_depthwise_kernel_size": 7}),
    "whisper": Entry("WhisperModel", _whisper, _WHISPER),
    "speech_to_text": Entry("Speech2TextModel", _speech_to_text, _SPEECH_TO_TEXT),
    "audio_spectrogram": Entry(
        "ASTModel",
        _spectrogram,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        | {"max_length": 32, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
    ),
}
