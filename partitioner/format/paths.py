"""Names of the files in a delegate and in the mlpackage inside it."""

MODEL_DIRECTORY = "model.mlpackage"
COMPILED_DIRECTORY = "model.mlmodelc"
METADATA_FILE = "metadata.json"

MANIFEST_FILE = "Manifest.json"
AUTHOR = "com.apple.CoreML"
SPEC_ITEM = "model.mlmodel"
WEIGHTS_ITEM = "weights"
WEIGHT_FILE_NAME = "weight.bin"
SPEC_FILE = f"Data/{AUTHOR}/{SPEC_ITEM}"
WEIGHT_FILE = f"Data/{AUTHOR}/{WEIGHTS_ITEM}/{WEIGHT_FILE_NAME}"
