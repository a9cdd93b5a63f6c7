"""Parity: an engine against PEFT on PyTorch, each row alone. References, comparisons, reports."""
