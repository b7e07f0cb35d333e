"""The address of a Ray cluster: by which setting it was given, and whether one can be there."""

import os
import re
import socket
from dataclasses import dataclass
from typing import Final, Literal

from neulig_ray.errors import InputError

FLAG: Final = "--address"
VARIABLE: Final = "RAY_ADDRESS"
AUTO: Final = "auto"
_SECONDS: Final = (
    15.0  # for a head to answer; it does so within milliseconds unless its machine is overloaded
)
_CLIENT: Final = "ray://"
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_FRAME: Final = 4


@dataclass(frozen=True)
class Address:
    """HOST:PORT, ray://HOST:PORT or `auto`, and the setting that it came from, if it came from one."""

    value: str
    source: Literal["--address", "RAY_ADDRESS", ""]

    @property
    def named(self) -> str:
        """The setting and its value, as messages call them."""
        value = re.sub(r"(?<=//)[^/@]*@", "...@", self.value)  # a password
        return {FLAG: f"{FLAG} {value!r}", VARIABLE: f"{VARIABLE} is {value!r}"}.get(
            self.source, f"without {FLAG}"
        )

    def check_form(self) -> None:
        """Raise InputError for what is no address of a cluster. Asks nobody."""
        if self.value != AUTO:
            self.host_and_port()

    def host_and_port(self) -> tuple[str, int]:
        """Raises InputError for another form than HOST:PORT or ray://HOST:PORT."""
        scheme, mark, _ = self.value.partition("://")
        if mark and scheme != _CLIENT.removesuffix("://"):
            what = {
                "http": "the address of the job server, which `ray job submit` asks",
                "https": "the address of the job server, which `ray job submit` asks",
            }.get(scheme.lower(), "no address of a Ray cluster")
            raise self.unusable(f"that is {what}")
        host, colon, port = self.value.removeprefix(_CLIENT).rpartition(":")
        if not colon or not host or re.search(r"[\s/@,?#]", host) or (":" in host) != (host[:1] == "["):
            raise self.unusable("that is not of the form HOST:PORT")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
            raise self.unusable(f"{port!r} is no port, which is a number from 1 to 65535")
        return host.strip("[]"), int(port)

    def check_answers(self) -> None:
        """Raise InputError where nothing listens there, or something other than Ray.

        Ray itself would wait for most of a minute, and tell the same of all of these.
        """
        host, port = self.host_and_port()
        try:
            with socket.create_connection((host, port), timeout=_SECONDS) as connection:
                if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                    return
                connection.sendall(_HTTP2_PREFACE)
                answer = _received(connection)
        except socket.gaierror as error:
            raise self.unusable(
                f"no Ray answers there: the name {host!r} is unknown here ({error})"
            ) from error
        except UnicodeError as error:
            raise self.unusable(f"no Ray answers there: {host!r} is no name of a machine") from error
        except OSError as error:
            raise self.unusable(f"no Ray answers there ({error})") from error
        if answer[3:4] != bytes([_SETTINGS_FRAME]):
            web = "a web server answers, such as Ray's own dashboard"
            other = "what listens there does not speak its protocol"
            raise self.unusable(f"no Ray answers there: {web if answer.startswith(b'HTTP/') else other}")

    def unusable(self, reason: str) -> InputError:
        """The error, with the remedies that fit the setting."""
        otherwise = {
            FLAG: f", or leave {FLAG} out for this machine alone",
            VARIABLE: f", or unset {VARIABLE} for this machine alone",
        }.get(self.source, "")
        return InputError(
            f"{self.named}: {reason}. Give HOST:PORT of the head (6379 unless told otherwise; `ray status` "
            f"there shows it), or `{AUTO}` on a node of the cluster{otherwise}."
        )


def given(flag: str | None, default: str | None = None) -> Address | None:
    """The cluster that --address, else RAY_ADDRESS, else `default` names; None: this machine alone.

    As in Ray, `local` means the latter, and `auto` gives way to what RAY_ADDRESS says.
    """
    inherited = os.environ.get(VARIABLE, "").strip()
    if inherited and (flag is None or flag.strip() == AUTO):
        found = Address(inherited, VARIABLE)
    elif flag is not None:
        found = Address(flag.strip(), FLAG)
    elif default is not None:
        found = Address(default, "")
    else:
        return None
    return None if found.value == "local" else found


def _received(connection: socket.socket) -> bytes:
    """The start of what the other side says; a server of HTTP/2 says its settings first."""
    answer = b""
    while len(answer) < 9 and (more := connection.recv(9 - len(answer))):
        answer += more
    return answer
