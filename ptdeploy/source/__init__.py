"""What was trained: the checkpoint, its base model and its tokenizer."""
