"""What a model is: Hugging Face's config.json, parsed once into frozen records. No framework."""
