"""GPUs and links: what datasheets and measurements say of them, each number with its source."""

from simulator.hardware.gpu import Gpu, KernelProfile
from simulator.hardware.profiles import list_gpus, load_gpu

__all__ = ["Gpu", "KernelProfile", "list_gpus", "load_gpu"]
