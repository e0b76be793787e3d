"""What torch does not offer: the driver's readings, and the runtime's plain copy."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch


def smi(query: str) -> list[str] | None:
    """Values of ``nvidia-smi`` for the first GPU; None where it cannot be asked."""
    try:
        asked = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "--id=0"]
        text = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return [part.strip() for part in text.strip().split(",")]


@cache
def memcpy() -> Callable[..., int]:
    """``cudaMemcpyAsync`` of the CUDA runtime torch has loaded."""
    major = str(torch.version.cuda).split(".", maxsplit=1)[0]
    for name in (f"libcudart.so.{major}", "libcudart.so"):
        with suppress(OSError):
            return ctypes.CDLL(name).cudaMemcpyAsync
    raise RuntimeError("the CUDA runtime library is not loaded")


class _Field(ctypes.Structure):
    """``nvmlFieldValue_t``."""

    _fields_ = (
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency_us", ctypes.c_longlong),
        ("type", ctypes.c_uint),
        ("failed", ctypes.c_uint),
        ("value", ctypes.c_ulonglong),
    )


#: ``NVML_FI_DEV_POWER_INSTANT``, ``NVML_CLOCK_SM``, and the mask of a reading's 32 bits.
_POWER_INSTANT, _CLOCK_SM, _LOW = 186, 1, 0xFFFFFFFF


class Meter:
    """Clock, power and energy of a GPU, from the driver's library: milliseconds a reading. Without it, no readings."""

    def __init__(self, index: int) -> None:
        self._library: ctypes.CDLL | None = None
        self._device = ctypes.c_void_p()
        with suppress(OSError):
            library = ctypes.CDLL("libnvidia-ml.so.1")
            opened = library.nvmlInit_v2() == 0
            if opened and library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._device)) == 0:
                self._library = library

    def read(self) -> dict[str, float]:
        """``sm_mhz``, ``power_w`` now, ``energy_j`` since the driver was loaded, why the clock is held back (a mask)
        and degrees; NaN for what is not known."""
        if self._library is None:
            return {}
        library, device = self._library, self._device
        clock, degrees = ctypes.c_uint(), ctypes.c_uint()
        energy, reasons = ctypes.c_ulonglong(), ctypes.c_ulonglong()
        power = _Field(field=_POWER_INSTANT)
        read = {
            "sm_mhz": library.nvmlDeviceGetClockInfo(device, _CLOCK_SM, ctypes.byref(clock)),
            "power_w": library.nvmlDeviceGetFieldValues(device, 1, ctypes.byref(power)) or power.failed,
            "energy_j": library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(energy)),
            "held_back_by": library.nvmlDeviceGetCurrentClocksThrottleReasons(device, ctypes.byref(reasons)),
            "temperature_c": library.nvmlDeviceGetTemperature(device, 0, ctypes.byref(degrees)),
        }
        values = {
            "sm_mhz": float(clock.value),
            "power_w": (power.value & _LOW) * 1e-3,
            "energy_j": energy.value * 1e-3,
            "held_back_by": float(reasons.value),
            "temperature_c": float(degrees.value),
        }
        return {name: value if read[name] == 0 else float("nan") for name, value in values.items()}
