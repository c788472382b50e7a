"""Children of the test process that may be killed: a fork is cheap, an import of torch is not."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from flowalign.errors import FlowalignError, StopRequested

CRASHED = 99  # exit code of an exception that is not the user's


@dataclass
class Child:
    """A forked process."""

    pid: int
    status: int | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 120.0) -> int:
        """Exit code, or minus the signal's number; AssertionError when it takes longer."""
        deadline = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
            elif time.monotonic() > deadline:
                self.kill()
                os.waitpid(self.pid, 0)
                raise AssertionError(f"the child still ran after {seconds} s")
            else:
                time.sleep(0.001)
        return os.waitstatus_to_exitcode(self.status)


def fork(body: Callable[[], object]) -> Child:
    """Run `body` in a child; its exit code is that of the error contract."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid)
    _finish(body)


def _finish(body: Callable[[], object]) -> NoReturn:
    code = CRASHED
    try:
        body()
        code = 0
    except FlowalignError as error:
        print(error.line(), file=sys.stderr)
        code = error.exit_code
    except StopRequested as stop:
        code = stop.exit_code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
