"""What the trainer adds to plain Gaussian splatting: small objects called from its loop, each off by default.

They import only `ops` and `utils`: cameras, tensors and callables are handed to them.
"""

from innovations.color_calibration import ColorCalibrationNetwork
from innovations.region_adaptive_loss import RegionAdaptiveLoss

__all__ = ["ColorCalibrationNetwork", "RegionAdaptiveLoss"]
