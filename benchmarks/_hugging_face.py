"""Small image classifiers of Hugging Face's families, with random weights, in folders as
`save_pretrained` leaves them."""

import json

SIZE = {"image_size": 32}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 64}
STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}
SWIN = {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
FAMILIES = {  # kind of model -> what its configuration is made small with
    "beit": SIZE | SMALL | {"patch_size": 8},
    "bit": STAGES | {"embedding_size": 16, "num_groups": 4},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "cvt": {
        "num_channels": 3,
        "embed_dim": [16, 32, 64],
        "num_heads": [1, 2, 4],
        "depth": [1, 2, 3],
    },
    "data2vec-vision": SIZE | SMALL | {"patch_size": 8},
    "deit": SIZE | SMALL | {"patch_size": 8},
    "dinov2": SIZE | SMALL | {"patch_size": 8},
    "dinov2_with_registers": SIZE | SMALL | {"patch_size": 8},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320}
    | {"initializer_range": 0.5},
    "focalnet": SIZE | {"embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32]},
    "ijepa": SIZE | SMALL | {"patch_size": 8},
    "levit": {
        "image_size": 64,
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [16, 16, 16],
    },
    "mobilenet_v1": {"depth_multiplier": 0.25, "classifier_dropout_prob": 0.2},
    "mobilenet_v2": {"depth_multiplier": 0.35, "image_size": 32},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 64],
        "num_attention_heads": 2,
    },
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25},
    "poolformer": {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]},
    "pvt": {
        "image_size": 64,
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
    },
    "pvt_v2": {
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
    },
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    "resnet": STAGES | {"embedding_size": 16},
    "segformer": {
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
    },
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [16, 24, 32, 48]},
    "swin": SWIN,
    "swinv2": SWIN,
    "vit": SIZE | SMALL | {"patch_size": 8},
    "vit_msn": SIZE | SMALL | {"patch_size": 8},
}


def folder_of(kind, folder):
    "Write a small net of that `kind` into `folder`; returns it."
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.for_model(kind, **FAMILIES[kind])
    config.architectures = []  # none is named where a kind has several
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    about = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder
