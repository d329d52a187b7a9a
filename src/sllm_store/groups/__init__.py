"""Read chosen tensors of a checkpoint as they are stored, a group at a time: for who streams."""
