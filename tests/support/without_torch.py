"""An interpreter as a bundle's users have it: without torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap

BLOCK = textwrap.dedent(
    """
    import sys

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "transformers", "peft", "onnx", "onnx_ir"):
                raise ImportError(f"{name} must not be imported here")

    sys.meta_path.insert(0, Refuse())
    """
)


def run_without_torch(code: str, *arguments: str) -> str:
    """Run code in an interpreter where torch, transformers, peft and onnx cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
