"""Tokenizers as programs for OpenVINO, so that C++ takes text."""
