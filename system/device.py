"""What a run computes on: device, number format, torch.compile; the device's peak speed, and the memory in use.

'auto' means the best that the machine supports.
"""

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from contextlib import suppress

import torch

from system.cpu import keep_memory, limit_threads, measured_flops
from system.dtypes import DTYPES

# Dense bf16 (V100, T4, RTX 20: fp16) tensor TFLOP/s with float32 accumulation, from the vendors' data sheets; the first
# key that is in the device's name as words counts. MI250X: one of the two devices on a card.
PEAK_TFLOPS = {
    "GB300": 2500, "GB200": 2500, "B300": 2250, "B200": 2250, "GH200": 989, "H200 NVL": 835, "H200": 989,
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H800": 989, "H20": 148, "A100": 312, "A800": 312,
    "L40S": 362, "L40": 181, "L20": 120, "L4": 121, "A40": 150, "A30": 165, "A10G": 70, "A10": 125, "V100": 125,
    "T4": 65, "RTX 6000 Ada": 364, "RTX A6000": 155,
    "5090": 209, "5080": 113, "5070 Ti": 88, "5070": 62, "5060 Ti": 47, "5060": 38, "4090": 165, "4080 SUPER": 104,
    "4080": 97, "4070 Ti SUPER": 88, "4070 Ti": 80, "4070 SUPER": 71, "4070": 58, "4060 Ti": 44, "4060": 30,
    "3090 Ti": 80, "3090": 71, "3080 Ti": 68, "3080": 60, "3070 Ti": 44, "3070": 41, "3060 Ti": 32, "3060": 25,
    "3050": 18, "2080 Ti": 54, "2080": 40, "2070": 30, "2060": 26,
    "MI355X": 2517, "MI350X": 2307, "MI325X": 1307, "MI300X": 1307, "MI300A": 981, "MI250X": 192, "MI210": 181,
}  # fmt: skip
OTHER_MODELS = r"(?! (Ti|SUPER|D)\b)"  # after a GeForce's number, these name another GPU
SLOWER = re.compile(r"Laptop|MIG")  # a laptop's GPU is named after the desktop's, a slice of a GPU after the whole


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device of this process: under torchrun, GPU number local_rank. Raises ValueError if it does not exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "mps", "cpu"):
        raise ValueError(f"device={name} is unknown: use auto, cuda, cuda:1, mps or cpu")
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = local_rank if local_rank is not None else device.index or 0
        # torchrun tells all ranks how many there are, so that they agree; srun alone does not
        highest = int(os.environ.get("LOCAL_WORLD_SIZE", index + 1)) - 1 if local_rank is not None else index
        if highest >= found:
            raise ValueError(
                f"device={name}: GPU {highest} is needed, PyTorch finds {found} GPUs: use --device=cpu or fewer "
                "processes, or install a CUDA build of PyTorch"
            )
        device = torch.device("cuda", index)
        make_current(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device=mps needs a Mac with a GPU: use --device=auto")
    elif device.type == "cpu":
        limit_threads()
    return device


def make_current(device: torch.device) -> None:
    """Makes `device` this thread's own. A new thread begins with GPU 0, on which it would take memory for a context."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def prepare(device: torch.device) -> None:
    """Settings of the process for training on `device`."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32, as nanoGPT
    elif device.type == "cpu":
        keep_memory()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype by its long or short name. auto: bfloat16 where it is native, else float16 on CUDA, float32 elsewhere."""
    name = DTYPES.get(name, name)
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    native = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.bfloat16 if native else torch.float32


def pick_compile(wanted: bool | str, device: torch.device) -> bool:
    """Whether to compile. auto: on CUDA only; on a CPU it gained nothing. Off with a note where it cannot work."""
    missing, on_cuda = None, device.type == "cuda"
    if wanted is False or (wanted == "auto" and not on_cuda):
        return False
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang", "cl"))):
        missing = "a C compiler"
    elif not has_python_headers():
        missing = "Python.h (the package python3-dev or python3-devel)"
    elif on_cuda and importlib.util.find_spec("triton") is None:
        missing = "the package triton"
    elif on_cuda and torch.cuda.get_device_capability(device) < (7, 0):
        missing = "a GPU of compute capability 7.0 or more"
    if missing and os.environ.get("RANK", "0") == "0":
        print(f"note: torch.compile needs {missing}: continuing without it", file=sys.stderr)
    return missing is None


def has_python_headers() -> bool:
    """Whether a C compiler finds Python.h, which the code that torch.compile generates includes."""
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's default has no headers
    folders = [sysconfig.get_path("include", scheme)]
    folders += [folder for key in ("CPATH", "C_INCLUDE_PATH") for folder in os.environ.get(key, "").split(os.pathsep)]
    return any(os.path.exists(os.path.join(folder, "Python.h")) for folder in folders)


def peak_flops_of(device: torch.device, dtype: torch.dtype, override: float | None) -> float | None:
    """Dense FLOP/s of the device, of a CPU as measured with dtype; None if unknown. override: TFLOP/s."""
    if device.type == "cpu" and not override:
        return measured_flops(dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = [peak for part, peak in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b{OTHER_MODELS}", name)]
    if known and not SLOWER.search(name):
        override = override or known[0]
    return override and override * 1e12


def memory_used(device: torch.device) -> float | None:
    """MiB: on CUDA the peak of tensors, elsewhere this process's resident memory (on macOS its peak), or None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):  # Linux
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    with suppress(ImportError):  # Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return None
