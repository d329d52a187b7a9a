"""What a model says about text: its tokenizer, chat template, tool calls and grammars."""
