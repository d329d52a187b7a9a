"""Where a forward pass gets its weights from: in memory for good, or streamed ahead of use."""
