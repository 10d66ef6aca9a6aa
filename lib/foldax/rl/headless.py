"""Rendering on machines without a screen."""

import ctypes.util
import os


def prepare() -> None:
    """Makes MuJoCo and pygame render without a screen or audio device where there are none.

    Both read these environment variables once, when they are imported.
    """
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if os.environ.get("DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")
