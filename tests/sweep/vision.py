"""Image models: classifiers, segmenters, detectors and depth estimators."""

import torch
from sweep.entry import Entry, Inputs
from torch import Tensor

_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def _image(size: int) -> Inputs:
    def inputs() -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(1, 3, size, size)}

    return inputs


def _video() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, 4, 3, 32, 32)}


TRANSFORMERS = {
    "vit": Entry("ViTModel", _image(32), _TRANSFORMER),
    "deit": Entry("DeiTModel", _image(32), _TRANSFORMER),
    "beit": Entry("BeitModel", _image(32), {**_TRANSFORMER, "use_relative_position_bias": True}),
    "dinov2": Entry("Dinov2Model", _image(32), _TRANSFORMER),
    "vit_msn": Entry("ViTMSNModel", _image(32), _TRANSFORMER),
    "swin": Entry(
        "SwinModel",
        _image(32),
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "swinv2": Entry(
        "Swinv2Model",
        _image(32),
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "segformer": Entry(
        "SegformerForSemanticSegmentation",
        _image(64),
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
        | {"decoder_hidden_size": 16, "num_labels": 5},
    ),
    "pvt_v2": Entry(
        "PvtV2Model",
        _image(64),
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
        | {"mlp_ratios": [2, 2, 2, 2]},
    ),
    "mobilevit": Entry(
        "MobileViTModel",
        _image(64),
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 64]}
        | {"num_attention_heads": 4, "output_stride": 16},
    ),
    "mobilevit_v2": Entry("MobileViTV2Model", _image(64), {"image_size": 64, "width_multiplier": 0.5}),
    "levit": Entry(
        "LevitModel",
        _image(64),
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]}
        | {"key_dim": [8, 8, 8]},
    ),
    "hiera": Entry(
        "HieraModel",
        _image(64),
        {"embed_dim": 8, "image_size": [64, 64], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "yolos": Entry("YolosModel", _image(32), {**_TRANSFORMER, "image_size": [32, 32], "num_detection_tokens": 4}),
    "dpt": Entry(
        "DPTForDepthEstimation",
        _image(32),
        {**_TRANSFORMER, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16}
        | {"neck_hidden_sizes": [8, 16, 16, 16], "is_hybrid": False},
    ),
    "videomae": Entry("VideoMAEModel", _video, {**_TRANSFORMER, "num_frames": 4, "tubelet_size": 2}),
    "clip_vision": Entry("CLIPVisionModel", _image(32), _TRANSFORMER),
    "siglip_vision": Entry("SiglipVisionModel", _image(32), _TRANSFORMER),
    "swin2sr": Entry(
        "Swin2SRForImageSuperResolution",
        _image(16),
        {"image_size": 16, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "upscale": 2},
    ),
    "sam_vision": Entry(
        "SamVisionModel",
        _image(32),
        {**_TRANSFORMER, "output_channels": 16, "mlp_dim": 64, "window_size": 2, "global_attn_indexes": [1]},
    ),
}

CONVOLUTIONAL = {
    "resnet": Entry(
        "ResNetModel",
        _image(32),
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    ),
    "regnet": Entry(
        "RegNetModel", _image(32), {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 8}
    ),
    "convnext": Entry("ConvNextModel", _image(32), {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}),
    "convnext_v2": Entry("ConvNextV2Model", _image(32), {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}),
    "mobilenet_v1": Entry("MobileNetV1Model", _image(32), {"depth_multiplier": 0.25, "image_size": 32}),
    "mobilenet_v2": Entry("MobileNetV2Model", _image(32), {"depth_multiplier": 0.25, "image_size": 32}),
    "efficientnet": Entry(
        "EfficientNetModel",
        _image(32),
        {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    ),
    "bit": Entry(
        "BitModel", _image(32), {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 2}
    ),
    "poolformer": Entry("PoolFormerModel", _image(64), {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "focalnet": Entry(
        "FocalNetModel",
        _image(32),
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 16]}
        | {"focal_levels": [2, 2], "focal_windows": [3, 3]},
    ),
    "swiftformer": Entry(
        "SwiftFormerModel", _image(64), {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 64}
    ),
}
