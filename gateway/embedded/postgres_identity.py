"""Whom PostgreSQL runs as, for it refuses to run as root.

Not as root: as ourselves. As root - and as a user without a name, as in some containers, whom initdb
refuses - the first of these that can reach the binaries and the data:

1. ourselves, in a user namespace in which our user id has another number: PostgreSQL sees an ordinary
   user, the files stay root's, and no permission is changed. Containers often forbid it.
2. the owner of the data directory's surroundings, if that is not root (a checkout in somebody's home);
3. ``nobody``.

For 2 and 3 the directory ``<data_dir>/postgres``, which is ours, is given to that user. Nobody else's
directory is ever touched.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
NOBODY = 65534
COMMON_USERS = (1, 2, 1000, NOBODY)
"""Numbers that usually have a name: daemon, bin, the first person, nobody."""
C_LIBRARY = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Identity:
    """``name`` for messages; ``uid`` and ``gid`` own the files; ``namespace``: renumbered, see above."""

    name: str
    uid: int
    gid: int
    namespace: bool = False

    def enter(self) -> None:
        """Become it, for good; in a forked child, before exec. Raises OSError where the system forbids it."""
        if self.namespace:
            if C_LIBRARY.unshare(CLONE_NEWUSER) != 0:
                raise OSError(ctypes.get_errno(), "user namespaces are forbidden here")
            Path("/proc/self/setgroups").write_text("deny")
            # initdb wants a user that has a name; which one does not matter.
            number = next(filter(has_name, COMMON_USERS), NOBODY)
            Path("/proc/self/uid_map").write_text(f"{number} {self.uid} 1")
            Path("/proc/self/gid_map").write_text(f"{number} {self.gid} 1")
        elif self.uid != os.geteuid():
            os.setgroups([])
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)

    def reaches(self, executables: Sequence[Path], directory: Path) -> bool:
        """Whether it may run all of these and get to ``directory``; asked in a forked child."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self.enter()
                may_run = all(os.access(path, os.R_OK | os.X_OK) for path in executables)
                status = 0 if may_run and os.access(directory, os.X_OK) else 1
            except OSError:
                pass
            os._exit(status)
        return os.waitpid(child, 0)[1] == 0


def die_with_parent() -> None:
    """Have the kernel send this process SIGINT (fast shutdown) when the guard is killed. Linux only.

    After ``Identity.enter``: a change of user clears it.
    """
    if hasattr(C_LIBRARY, "prctl"):
        C_LIBRARY.prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)


def candidates(directory: Path) -> list[Identity]:
    """Whom to try, in order; ``directory`` is ours, its parent tells in whose place we are."""
    uid, gid = os.geteuid(), os.getegid()
    ourselves = Identity("this user", uid, gid)
    renumbered = Identity("this user in a user namespace", uid, gid, namespace=True)
    if uid != 0:
        return [ourselves] if has_name(uid) else [renumbered, ourselves]
    found = [renumbered]
    for place in directory.parents:
        owner = place.stat()
        if owner.st_uid != 0 and has_name(owner.st_uid):
            found.append(Identity(f"user {owner.st_uid}, who owns {place}", owner.st_uid, owner.st_gid))
            break
    return [*found, Identity("nobody", NOBODY, NOBODY)]


def has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def choose(executables: Sequence[Path], directory: Path) -> Identity:
    """The first candidate that gets everywhere; SystemExit says what to do when there is none."""
    tried = candidates(directory)
    for identity in tried:
        if identity.reaches(executables, directory.parent):
            return identity
    raise SystemExit(
        "PostgreSQL does not run as root, and here none of these can reach both "
        f"{executables[0].parent} and {directory.parent}: {', '.join(identity.name for identity in tried)}. "
        "Run the gateway as an ordinary user, or in a directory others may enter, or set WEIR__POSTGRES__DSN."
    )


def own(directory: Path, identity: Identity) -> None:
    """Give our directory and what is in it to ``identity``, where it is somebody else's."""
    if os.geteuid() != 0 or directory.stat().st_uid == identity.uid:
        return
    for place, directories, files in os.walk(directory):
        for name in (".", *directories, *files):
            os.chown(Path(place) / name, identity.uid, identity.gid, follow_symlinks=False)
