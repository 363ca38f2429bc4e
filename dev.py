#!/usr/bin/env python3
"""Set up and run: `python3 dev.py app`, `test`, `check`, `bench`. Needs Python 3.11 or newer and nothing else.

Each command makes the virtual environment `.venv` when it is missing or the requirements changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("QLAB_VENV", ROOT / ".venv"))
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def set_up(requirements: str) -> None:
    """The virtual environment with these requirements; does nothing when it has them already."""
    files = [ROOT / "requirements.txt", ROOT / requirements]
    wanted = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    stamp = VENV / f"{requirements}.installed"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    if not PYTHON.exists():
        print(f"making the virtual environment {VENV.name} …", flush=True)
        venv.create(VENV, with_pip=True)
    print(f"installing {requirements}; the first time this takes a few minutes …", flush=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "-q", "-r", ROOT / requirements], check=True, cwd=ROOT)
    stamp.write_text(wanted)


def ensure_browser() -> None:
    """The browser tests need Chromium; on Debian it is installed when this runs as root."""
    if any(shutil.which(b) for b in BROWSERS):
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        print("installing chromium for the browser tests …", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return
    sys.exit("the browser tests need Chromium: install it (Debian: sudo apt-get install chromium) and run this again.")


def run(*command: str | Path) -> int:
    return subprocess.run([str(c) for c in command], cwd=ROOT).returncode


def app(arguments: list[str]) -> int:
    set_up("requirements.txt")
    return run(PYTHON, "-m", "streamlit", "run", "app.py", *arguments)


def test(arguments: list[str]) -> int:
    set_up("requirements-dev.txt")
    ensure_browser()
    return run(PYTHON, "-m", "pytest", *arguments)


def check(arguments: list[str]) -> int:
    """Format, lint and types."""
    set_up("requirements-dev.txt")
    steps = (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"])
    return max(run(PYTHON, "-m", *step) for step in steps)


def bench(arguments: list[str]) -> int:
    set_up("requirements-dev.txt")
    return run(PYTHON, "-m", "benchmarks", *arguments)


COMMANDS = {"app": app, "test": test, "check": check, "bench": bench}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        return 2
    if sys.version_info < (3, 11):  # noqa: UP036 - the one place that may meet an older Python
        sys.exit(f"qlab needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    return COMMANDS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as e:
        sys.exit(f"this step failed: {' '.join(map(str, e.cmd))}")
