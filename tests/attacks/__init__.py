"""What somebody may do to harm or mislead whoever runs a bundle, and what then happens.

- `lies.py`: bundles whose hashes are right and whose manifest or files say what is not so.
- `values.py`: bad values for every parameter of every public function.
- `python -m attacks` from tests/ (or `python -m tests.attacks`) runs the tables and prints counts:
  tried, refused, harmless, and wrong, which must be 0.

The tests go through the same tables, in Python and, with the probe, in C++.
"""
