"""Drawing where there is no screen."""

import ctypes.util
import os


def prepare() -> None:
    """Tells MuJoCo and pygame, which ask once, to draw without a screen or loudspeakers where there are none."""
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if os.environ.get("DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")
