"""One class per weight scheme, all with the same three methods: linear, embed, dequantize."""
