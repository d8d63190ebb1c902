"""Where libraries may write: in one folder, or nowhere. They then work without a home folder, or with a read-only one."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import tempfile
from pathlib import Path

FOLDERS = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "HF_HOME": "huggingface",
    "NUMBA_CACHE_DIR": "numba",
    "WANDB_CONFIG_DIR": "wandb",
    "WANDB_CACHE_DIR": "wandb",
}
"""Environment variable that tells a library where to write, and the name of its folder. A user's own setting stays."""

AVALANCHE_PATHS = "avalanche.benchmarks.datasets.dataset_utils"


def keep_in_our_folder() -> Path | None:
    """Tell libraries, in this process and its children, to write below one folder, which they make when they need it.

    Call it before they are imported. Returns the folder, None if no folder can be written.
    """
    folder = _folder()
    if folder is not None:
        for variable, name in FOLDERS.items():
            os.environ.setdefault(variable, str(folder / name))
    return folder


def _folder() -> Path | None:
    """`dqmstream` in the user's cache folder if that can be written, otherwise a folder in the system's temporary folder."""
    try:
        home = Path() if os.environ.get("HOME") == "" else Path.home()  # otherwise an empty name would be the root folder
    except RuntimeError:  # no HOME, and the user is not in the password file
        home = Path()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    if cache.is_absolute() and _can_hold(cache / "dqmstream"):
        return cache / "dqmstream"
    try:
        shared = Path(tempfile.gettempdir()) / f"dqmstream-{os.getuid()}"
        shared.mkdir(mode=0o700, exist_ok=True)
        found = shared.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
        # Another user may have made that folder, to place files in it that this process would read.
        return shared if is_ours and os.access(shared, os.W_OK) else Path(tempfile.mkdtemp(prefix="dqmstream-"))
    except OSError:
        return None


def _can_hold(folder: Path) -> bool:
    """Whether the folder can be written, or made together with at most its parent, so that no home folder is made."""
    try:
        nearest = next(place for place in (folder, folder.parent, folder.parent.parent) if place.exists())
    except (StopIteration, OSError):
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def load_avalanche_paths() -> None:
    """Import Avalanche's module of paths without letting it write anything.

    On import, that module makes ~/.avalanche/config.json if it is missing, fails if it cannot, and makes a folder named `~` if
    there is no home. Here it finds a config file of this package with the same contents: data sets are in ~/.avalanche/data.
    Call this before the first import of Avalanche. If the user has imported it already, nothing is done.
    """
    avalanche = importlib.util.find_spec("avalanche")
    if AVALANCHE_PATHS in sys.modules or avalanche is None or not avalanche.submodule_search_locations:
        return
    origin = Path(avalanche.submodule_search_locations[0], *AVALANCHE_PATHS.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(AVALANCHE_PATHS, origin)
    if spec is None or spec.loader is None or not origin.exists():
        return
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(Path(__file__).parent / "learners" / "gradient" / "home")
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = before
    sys.modules[AVALANCHE_PATHS] = module
