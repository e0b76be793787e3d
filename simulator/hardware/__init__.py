"""GPUs and links: what datasheets and measurements say of them, each number with its source."""

from simulator.hardware.gpu import Gpu, KernelProfile
from simulator.hardware.links import Link, list_links, load_link
from simulator.hardware.profiles import list_gpus, load_gpu

__all__ = ["Gpu", "KernelProfile", "Link", "list_gpus", "list_links", "load_gpu", "load_link"]
