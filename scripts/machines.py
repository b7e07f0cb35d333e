"""Machines of one machine: sshd at loopback addresses, each with processes, a home and a /tmp of its own.

Namespaces (unshare) hold them: what runs in them sees, stops and writes nothing outside, there is no network
but loopback, and all of it ends with the process that made them.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = ("unshare", "setpriv", "mount", "flock", "setsid", "ssh", "ssh-keygen", "sshd", "rsync")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_KILLED_WITH_ME = ("setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", "--mount-proc")


def obstacle() -> str | None:
    """Why there can be no such machines here; None when there can."""
    if os.geteuid() != 0:
        return "needs root, who alone can make namespaces for processes, mounts and the network"
    if missing := [tool for tool in TOOLS if not _which(tool)]:
        return f"{', '.join(missing)} not found: apt-get install openssh-server rsync util-linux"
    tried = subprocess.run(
        [*_KILLED_WITH_ME, "--pid", "--mount", "--net", "mount", "-t", "tmpfs", "none", "/run"],
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    return f"needs namespaces, as outside of containers: {tried.stderr.strip()}" if tried.returncode else None


def isolated(command: Sequence[str | Path], work: Path) -> int:
    """Run a command as the first of a new set of namespaces; its exit status. Nothing of it is left after."""
    process = subprocess.Popen(
        [*_KILLED_WITH_ME, "--pid", "--mount", "--net", *map(str, command)], stdin=subprocess.DEVNULL
    )
    try:
        status = process.wait()
    finally:
        process.kill()
        process.wait()
    # Mounts of ours that reached this namespace would have rmtree walk through them.
    assert str(work) not in Path("/proc/self/mounts").read_text(encoding="utf-8")
    return status


class Machines:
    """The inside of `isolated`: this process is one machine, `add` makes others."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.key = work / "key"
        _loopback_up()
        for folder in ("/run", "/dev/shm"):
            subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
        Path("/run/sshd").mkdir()
        for path in (self.key, work / "host-key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        self.home = self._folders("client")
        subprocess.run(["sh", "-ec", self._mounts("client")], check=True)
        os.environ["HOME"] = str(self.home)
        os.chdir(REPOSITORY)

    def add(self, name: str, address: str, environment: dict[str, str]) -> Path:
        """Start a machine whose sshd listens at `address`; returns root's home there."""
        home = self._folders(name)
        config = self.work / name / "sshd_config"
        variables = " ".join(f'"{key}={value}"' for key, value in environment.items())
        config.write_text(
            f"ListenAddress {address}\nHostKey {self.work}/host-key\n"
            f"AuthorizedKeysFile {self.key}.pub\nPermitRootLogin yes\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\nMaxStartups 100\n"
            + (f"SetEnv {variables}\n" if variables else ""),
            encoding="utf-8",
        )
        log = (self.work / name / "sshd.log").open("wb")
        command = f"{self._mounts(name)}; exec {_which('sshd')} -D -e -f {config}"
        subprocess.Popen(
            [*_KILLED_WITH_ME, "--pid", "--mount", "sh", "-ec", command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        _wait_for(address, 22)
        return home

    def _folders(self, name: str) -> Path:
        home, temporary = self.work / name / "home", self.work / name / "tmp"
        for folder in (home, temporary):
            folder.mkdir(parents=True)
        (home / ".bashrc").touch()
        for path in _needed(self.work):
            if path.is_relative_to("/tmp"):
                (temporary / path.relative_to("/tmp")).mkdir(parents=True, exist_ok=True)
        return home

    def _mounts(self, name: str) -> str:
        """Shell commands: root's home, and /tmp, where only what is needed of the old one is seen."""
        folder = self.work / name
        users = [line.split(":") for line in Path("/etc/passwd").read_text(encoding="utf-8").splitlines()]
        for user in users:
            if user[0] == "root":
                user[5:] = str(folder / "home"), "/bin/bash"
        (folder / "passwd").write_text("".join(":".join(user) + "\n" for user in users), encoding="utf-8")
        (folder / "shadow").write_text(
            "root:*:20000:0:99999:7:::\n", encoding="utf-8"
        )  # no password, but not locked
        binds = [(folder / "passwd", "/etc/passwd"), (folder / "shadow", "/etc/shadow")]
        for path in _needed(self.work):
            if path.is_relative_to("/tmp"):
                binds.append((path, str(folder / "tmp" / path.relative_to("/tmp"))))
        commands = [f"mount --bind '{source}' '{target}'" for source, target in binds]
        return "; ".join([*commands, f"mount --rbind '{folder}/tmp' /tmp"])


def make_environment(folder: Path) -> None:
    """A virtual environment that sees this one's packages, and into which pip installs others.

    This one's own editable packages are not among them: what is installed there is what runs there.
    """
    import sysconfig

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    for name in ("pip", "ray", "mlflow"):
        script = (Path(sys.executable).parent / name).read_text(encoding="utf-8").split("\n", 1)[1]
        (folder / "bin" / name).write_text(f"#!{folder}/bin/python\n{script}", encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)


def processes() -> dict[int, str]:
    """pid -> command line of what runs in this namespace and those below it, this process left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:  # zombies have none
                    found[int(entry.name)] = command.strip()
    return found


def _needed(work: Path) -> list[Path]:
    return [Path(sys.prefix), Path(sys.base_prefix), REPOSITORY, work]


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _loopback_up() -> None:
    get_flags, set_flags, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, get_flags, request))[1]
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", flags | up))


def _wait_for(address: str, port: int, timeout: float = 300) -> None:
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
