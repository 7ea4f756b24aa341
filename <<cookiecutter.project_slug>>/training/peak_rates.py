"""Peak rates of accelerators, in floating-point operations per second."""

import re
from typing import NamedTuple


class Peak(NamedTuple):
    """Peak rates of dense matrix products, in TFLOP/s, by precision."""

    half: float  # bfloat16 and float16
    tf32: float
    float32: float


# A key matches a device name that contains all words of the key. The longest matching key takes
# precedence. The rates are from the data sheets of NVIDIA and AMD. If a data sheet lists only the
# rate for sparse matrices, half of that rate is used.
PEAKS = {
    "B200": Peak(2250, 1100, 75),
    "H200": Peak(989.4, 494.7, 66.9),
    "H200 NVL": Peak(835.5, 417.5, 60),
    "H100": Peak(989.4, 494.7, 66.9),
    "H100 NVL": Peak(835.5, 417.5, 60),
    "H100 PCIe": Peak(756, 378, 51),
    "A100": Peak(312, 156, 19.5),
    "A10": Peak(125, 62.5, 31.2),
    "L40S": Peak(362, 183, 91.6),
    "L4": Peak(121, 60, 30.3),
    "V100 SXM2": Peak(125, 15.7, 15.7),
    "T4": Peak(65, 8.1, 8.1),
    "RTX 4090": Peak(165.2, 82.6, 82.6),
    "RTX 3090": Peak(71, 35.6, 35.6),
    "MI300X": Peak(1307.4, 653.7, 163.4),
}
# Devices whose names match a key of PEAKS, but whose rates are different and not listed here.
OTHERS = ("RTX 4090 D", "RTX 4090 Laptop", "RTX 3090 Ti")


def peak_rate(device: str, precision: str) -> float | None:
    """Return the peak rate of a device in FLOP/s; None if the rate is unknown.

    Args:
        device: Name of the device, as returned by `torch.cuda.get_device_name`.
        precision: Name of a field of `Peak`.
    """
    words = set(re.split(r"[\W_]+", device))
    found = [name for name in (*PEAKS, *OTHERS) if words.issuperset(name.split())]
    name = max(found, key=len, default="")
    return getattr(PEAKS[name], precision) * 1e12 if name in PEAKS else None
