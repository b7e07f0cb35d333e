"""Signals that end a process let it clean up first: what was half written goes, then the signal ends it."""

import functools
import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)  # SIGINT is Python's own KeyboardInterrupt


class _Ended(BaseException):
    """Unwinds the stack as KeyboardInterrupt does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _unwind(number: int, frame: FrameType | None) -> None:
    for other in _ENDING:  # schedulers send them more than once; cleaning up is not disturbed
        signal.signal(other, signal.SIG_IGN)
    raise _Ended(number)


def cleans_up(main: Callable[[str, Sequence[str]], int]) -> Callable[[str, Sequence[str]], int]:
    """A command's `main` that leaves nothing half written when the process is told to end.

    A signal that is ignored stays so (`nohup`), and a handler of somebody else's stays.
    """

    @functools.wraps(main)
    def run(command: str, arguments: Sequence[str]) -> int:
        if threading.current_thread() is not threading.main_thread():
            return main(command, arguments)
        ours = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
        for number in ours:
            signal.signal(number, _unwind)
        try:
            return main(command, arguments)
        except _Ended as ended:
            signal.signal(ended.number, signal.SIG_DFL)
            os.kill(os.getpid(), ended.number)
            raise
        finally:
            for number in ours:
                signal.signal(number, signal.SIG_DFL)

    return run
