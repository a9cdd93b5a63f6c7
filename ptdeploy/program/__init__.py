"""What is exported: the model with its prompt, traced for an engine."""
