"""What a decoder is made of: norms, rotary positions, attention, gated DeltaNet, MLPs, experts."""
