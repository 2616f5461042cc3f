"""Words for people, by the standard `logging`.

Loggers: ``vfio_user.device`` (opened, closed), ``vfio_user.reset`` (each reset, with its time), ``vfio_user.memory``
(taken away and why, given back), ``vfio_user.irq`` (vectors enabled), ``vfio_user.events`` (requests to give a device
back, errors, what was done about them), ``vfio_user.testing`` (kernels that are fetched or built). All of it is at
level INFO or DEBUG, but for events, which are warnings and errors. What goes to the device is for `vfio_user.trace`.
"""

from __future__ import annotations

import sys

__all__ = ["debug", "info"]


def info(name: str, message: str, *arguments: object) -> None:
    """Log at level INFO, to the logger ``vfio_user.NAME``."""
    # Who has not imported logging has not set it up either; it takes longer to import than most of this package.
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(f"vfio_user.{name}").info(message, *arguments)


def debug(name: str, message: str, *arguments: object) -> None:
    """Log at level DEBUG, to the logger ``vfio_user.NAME``."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(f"vfio_user.{name}").debug(message, *arguments)
