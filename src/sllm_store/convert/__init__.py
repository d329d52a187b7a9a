"""Other formats into checkpoints of ours: GGUF dequantised, safetensors copied byte for byte."""
