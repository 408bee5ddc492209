"""Runs a command under what a systemd unit file demands, where systemd itself is not process 1.

`python -m tests.deploy.sandbox UNIT USER WRITABLE… -- COMMAND…`, as root: the unit's mounts (ProtectSystem=strict with
`WRITABLE` folders, PrivateDevices, ProtectKernelTunables), `USER` without capabilities or groups, and the seccomp
filters (SystemCallFilter, MemoryDenyWriteExecute, RestrictAddressFamilies, RestrictNamespaces) by libseccomp, with the
groups of system calls that this machine's systemd knows. Left out: PrivateTmp, since tests' files are in /tmp, and what
control groups do: memory, devices, IP addresses.
"""

import ctypes
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.deploy.unit_files import PROJECT, Section, read

ALLOW: Final = 0x7FFF0000  # SCMP_ACT_ALLOW
EPERM: Final = 0x00050001  # SCMP_ACT_ERRNO(EPERM)
ENOSYS: Final = 0x00050026
_MASKED_EQ: Final = 7  # SCMP_CMP_MASKED_EQ
_EQUAL: Final = 4  # SCMP_CMP_EQ
_AT_LEAST: Final = 5  # SCMP_CMP_GE
_FAMILIES: Final = 64  # more than Linux has
_PROT_WRITE_EXEC: Final = 6
_PROT_EXEC: Final = 4
# CLONE_NEWNS, …CGROUP, …UTS, …IPC, …USER, …PID, …NET of clone(2).
_CLONE_FLAGS: Final = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)


class Compared(ctypes.Structure):
    """struct scmp_arg_cmp: a condition on one argument."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class Filter:
    """One seccomp filter; the kernel asks all that are loaded, and the strictest answer counts."""

    def __init__(self, otherwise: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._library.seccomp_init.argtypes = (ctypes.c_uint32,)
        self._library.seccomp_load.argtypes = (ctypes.c_void_p,)
        self._library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
        self._library.seccomp_rule_add_array.argtypes = (
            ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Compared),
        )  # fmt: skip
        self._context = self._library.seccomp_init(otherwise)

    def add(self, action: int, call: str, *conditions: Compared) -> None:
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:  # not on this machine
            return
        array = (Compared * max(1, len(conditions)))(*conditions)
        code = self._library.seccomp_rule_add_array(self._context, action, number, len(conditions), array)
        assert code == 0, f"libseccomp refused a rule for {call}: {code}"

    def load(self) -> None:
        assert self._library.seccomp_load(self._context) == 0, "the kernel refused the filter"


def system_calls(word: str) -> set[str]:
    """The system calls that a name or a group ("@service") stands for."""
    if not word.startswith("@"):
        return {word}
    shown = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
    calls = [line.strip() for line in shown.stdout.splitlines()[1:]]
    return set().union(*(system_calls(call) for call in calls if call and not call.startswith("#")))


def allowed_calls(lines: list[str]) -> set[str]:
    """What SystemCallFilter= lines leave (systemd.exec(5)): the first is a list of what is allowed."""
    allowed = system_calls("@default")
    for line in lines:
        words = line.removeprefix("~").split()
        named = set().union(*map(system_calls, words))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def filters(service: Section) -> list[Filter]:
    """The unit's seccomp filters; that of the system calls last, as it forbids loading more."""
    made = []
    if service.get("MemoryDenyWriteExecute") == ["yes"]:
        memory = Filter(ALLOW)
        memory.add(EPERM, "mmap", Compared(2, _MASKED_EQ, _PROT_WRITE_EXEC, _PROT_WRITE_EXEC))
        for call in ("mprotect", "pkey_mprotect"):
            memory.add(EPERM, call, Compared(2, _MASKED_EQ, _PROT_EXEC, _PROT_EXEC))
        made.append(memory)
    if service.get("RestrictNamespaces") == ["yes"]:
        namespaces = Filter(ALLOW)
        for flag in _CLONE_FLAGS:
            for call in ("clone", "unshare"):
                namespaces.add(EPERM, call, Compared(0, _MASKED_EQ, flag, flag))
        namespaces.add(EPERM, "setns")
        namespaces.add(ENOSYS, "clone3")  # its flags are out of a filter's sight; the C library takes clone instead
        made.append(namespaces)
    families = {int(getattr(socket, name)) for name in service["RestrictAddressFamilies"][0].split()}
    sockets = Filter(ALLOW)
    for family in set(range(_FAMILIES)) - families:
        sockets.add(EPERM, "socket", Compared(0, _EQUAL, family))
    sockets.add(EPERM, "socket", Compared(0, _AT_LEAST, _FAMILIES))
    made.append(sockets)
    calls = Filter(EPERM)
    for call in allowed_calls(service["SystemCallFilter"]):
        calls.add(ALLOW, call)
    return [*made, calls]


def mount(service: Section, writable: list[str]) -> None:
    """Make the file system as this process sees it read-only, but for `writable`."""
    _mount("--make-rprivate", "/")
    show({Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), PROJECT})
    for path in writable:
        _mount("--bind", path, path)
    _mount("-o", "remount,bind,ro", "/")
    if service["ProtectKernelTunables"] == ["yes"]:
        _mount("--bind", "/proc/sys", "/proc/sys")
        for path in ("/proc/sys", "/sys"):
            _mount("-o", "remount,bind,ro", path)
    if service.get("PrivateDevices") == ["yes"]:
        _mount("-t", "tmpfs", "-o", "mode=755", "private", "/mnt")
        for device in ("null", "zero", "full", "random", "urandom", "tty"):
            Path("/mnt", device).touch()
            _mount("--bind", f"/dev/{device}", f"/mnt/{device}")
        _mount("--move", "/mnt", "/dev")


def show(folders: set[Path]) -> None:
    """Let every user reach `folders`, the interpreter's above all, where they lie in somebody's private home."""
    _mount("-t", "tmpfs", "-o", "mode=755", "held", "/mnt")
    kept = {one for one in folders if not any(other in one.parents for other in folders)}
    private = {one: [above for above in reversed(one.parents) if not above.stat().st_mode & 0o001] for one in kept}
    held = {}
    for number, one in enumerate(one for one in kept if private[one]):
        held[one] = Path(f"/mnt/{number}")
        held[one].mkdir()
        _mount("--rbind", str(one), str(held[one]))
    for home in {private[one][0] for one in held}:
        _mount("-t", "tmpfs", "-o", "mode=755", "home", str(home))
    for one, place in held.items():
        one.mkdir(parents=True)
        _mount("--move", str(place), str(one))
    subprocess.run(["umount", "-n", "/mnt"], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", "-n", *arguments], check=True)


def main() -> None:
    """Runs as root in a mount namespace of its own, starts itself again as the user, and becomes the command."""
    unit, user, *rest = sys.argv[1:]
    split = rest.index("--")
    service = read(Path(unit))["Service"]
    if os.geteuid() == 0:
        assert service["ProtectSystem"] == ["strict"]
        assert service["CapabilityBoundingSet"] == [""]
        assert service["NoNewPrivileges"] == ["yes"]
        mount(service, rest[:split])
        account = pwd.getpwnam(user)
        ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        privileges = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        again = [sys.executable, "-m", "tests.deploy.sandbox", *sys.argv[1:]]
        os.execvp("setpriv", ["setpriv", *ids, *privileges, *again])  # noqa: S606
    os.umask(int(service["UMask"][0], 8))
    for one in filters(service):
        one.load()
    os.execvp(rest[split + 1], rest[split + 1 :])  # noqa: S606


if __name__ == "__main__":
    main()
