"""Writing files that only their owner may read, and removing files and folders."""

import os
import shutil
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Atomically replace a file by one that only its owner may read. If the disk is full, the file is not changed."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)
    except OSError:
        fresh.unlink()
        raise


def remove_tree(path: Path) -> None:
    """Remove a file, a symbolic link (not its target) or a folder, if it exists."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
