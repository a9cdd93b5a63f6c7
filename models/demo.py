"""The demo: compile models/topics, verify it, score it against PyTorch, and answer with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "topics"))

from data import find_base_model  # noqa: E402  (topics/ is a folder of scripts, not a package)

BUNDLE = HERE.parent / "build" / "topics.bundle"
TEXTS = (
    "The compiler refused my program again, so I blamed the linker.",
    "Simmer the onions in butter until they are soft, then add the wine.",
    "The senator promised lower taxes and a longer election campaign.",
)


def step(*command: str) -> None:
    """Print a command as a user would type it, then run it; stop the demo if it fails."""
    shown = [part.replace(f"{Path.cwd()}/", "") for part in command]
    print("\n$", " ".join(f'"{part}"' if " " in part else part for part in shown), flush=True)
    # The base model's libraries warn and draw bars; the demo shows what ptdeploy says.
    quiet = {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    code = subprocess.run(command, check=False, env={**os.environ, **quiet}).returncode
    if code:
        sys.exit(code)


def main() -> None:
    ptdeploy = str(Path(sys.executable).with_name("ptdeploy"))
    topics = HERE / "topics"
    BUNDLE.parent.mkdir(exist_ok=True)
    step(
        *(ptdeploy, "compile", str(topics / "adapter"), "--target", "ort"),
        *("--base", str(find_base_model()), "--labels", str(topics / "labels.txt")),
        *("-o", str(BUNDLE), "--force"),
    )
    step(ptdeploy, "verify", str(BUNDLE))
    step(sys.executable, str(topics / "evaluate.py"), "--bundle", str(BUNDLE))
    step(ptdeploy, "run", str(BUNDLE), *TEXTS)


if __name__ == "__main__":
    main()
