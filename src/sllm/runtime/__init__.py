"""The inference engine for models larger than the GPU's memory: weights resident or streamed."""
