"""All architectures of the sweep, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from sweep import audio, multimodal, text, vision
from sweep.entry import Entry

ARCHITECTURES: Mapping[str, Entry] = MappingProxyType(
    {
        **text.ENCODERS,
        **text.DECODERS,
        **text.SEQUENCE_TO_SEQUENCE,
        **vision.TRANSFORMERS,
        **vision.CONVOLUTIONAL,
        **audio.ENTRIES,
        **multimodal.ENTRIES,
    }
)
