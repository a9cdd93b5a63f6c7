"""A tokenizer as a program for OpenVINO, so that C++ takes text."""
