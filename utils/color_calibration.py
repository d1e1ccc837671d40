"""`innovations.color_calibration` under a name that users' scripts import; see `utils.region_adaptive_loss`."""

from innovations.color_calibration import ColorCalibrationNetwork

__all__ = ["ColorCalibrationNetwork"]
