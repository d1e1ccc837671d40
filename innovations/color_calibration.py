"""Colour calibration: a small network for the whole rig, and an affine map for each of its cameras.

What the cameras did to the colours (tone curve, exposure, white balance) need
not be baked into the avatar. The picture passes first through the affine map
of its camera and then through one network shared by all; both start as the
identity. See doc/color_calibration.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ops.color_net import color_net, residual
from utils.errors import UserError, one_line
from utils.tensor_files import save_tensors
from utils.tensor_reader import load_tensors

FILE_NAME = "color_calibration.pt"  # beside the PLY
FORMAT = "efficient-gaussian-avatars colour calibration"
VERSION = 1
MAX_PARAMETERS = 10_000  # of the network
# Found with benchmarks/color_network.py --rates; see doc/color_calibration.md.
RATE = 1e-3
# The network learns in one iteration of so many, which saves more than a quarter of its cost
# (doc/color_calibration.md). Its few hundred weights see every pixel of every view, so that fewer steps do.
LEARN_EVERY = 4


class ColorCalibrationNetwork(nn.Module):
    """A map of colours to colours: 1x1 convolutions with ReLU, the identity until it is trained.

    The network's three outputs r shift the logit of the colour x, written
    without the logit so that black and white are nothing special:

        sigmoid(logit(x) + r) = x e^r / (1 - x + x e^r)

    Black and white stay what they are whatever r is, so a composited white
    background cannot get a tint. The last layer starts at zero, hence r = 0.

    A rendered picture may leave [0, 1]. It is clamped first, and its gradient
    passes the clamp where a step down the gradient leads back inside, so a
    colour that is too bright is still pulled down; outwards it is blocked.

    On the CPU in float32 a native kernel does all of it (csrc/color_net.cpp).
    """

    def __init__(self, hidden_dim: int = 16, num_layers: int = 3, *, generator: torch.Generator | None = None) -> None:
        """`num_layers` counts the convolutions: 3 -> hidden_dim -> ... -> 3; with one there is no hidden layer.

        Args:
            generator: where the weights of the hidden layers come from; None is PyTorch's own.

        Raises:
            UserError: a size below 1, or so large that the network has 10,000 parameters or more.
        """
        super().__init__()
        if hidden_dim < 1:
            raise UserError(f"--color_net_hidden_dim must be at least 1, not {hidden_dim}")
        if num_layers < 1:
            raise UserError(f"--color_net_layers must be at least 1, not {num_layers}")
        self.widths = (3, *[hidden_dim] * (num_layers - 1), 3)
        count = sum(m * (n + 1) for n, m in zip(self.widths, self.widths[1:]))
        if count >= MAX_PARAMETERS:
            raise UserError(
                f"the colour network would have {count:,} parameters, not under {MAX_PARAMETERS:,}: "
                "lower --color_net_hidden_dim or --color_net_layers"
            )
        self.hidden_dim, self.num_layers = hidden_dim, num_layers
        self.convolutions = nn.ModuleList(nn.Conv2d(n, m, kernel_size=1) for n, m in zip(self.widths, self.widths[1:]))
        with torch.no_grad():
            for convolution in self.convolutions[:-1]:
                # He et al. 2015; the biases spread the kinks of the ReLUs over the colours that occur.
                convolution.weight.normal_(0.0, math.sqrt(2 / convolution.in_channels), generator=generator)
                convolution.bias.uniform_(-0.5, 0.5, generator=generator)
            self.convolutions[-1].weight.zero_()
            self.convolutions[-1].bias.zero_()

    def forward(
        self,
        image: Tensor,  # [3, H, W] or [B, 3, H, W]  0..1, or outside as a rendering may be
    ) -> Tensor:  # as image, within 0..1
        """The calibrated picture.

        Raises:
            ValueError: another shape.
        """
        if image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise ValueError(f"expected an image [3, H, W] or [B, 3, H, W], got {tuple(image.shape)}")
        return color_net(image, list(self.parameters()))

    def residual(self, image: Tensor) -> Tensor:
        """The shift of the logit, of the shape of the image, which is within 0..1."""
        return residual(image, list(self.parameters()))

    def regularizer(self) -> Tensor:
        """The mean of the squares of all weights and biases, a scalar.

        Not their sum: for hundreds of weights that outweighs what the pictures say about each, and drew
        all of them to zero within a few thousand iterations.
        """
        return _MeanSquare.apply(*self.parameters())


class _MeanSquare(torch.autograd.Function):
    """The mean of the squares of all elements of some tensors. In eager operations it took as long as the network."""

    @staticmethod
    def forward(ctx, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return torch.cat([weight.flatten() for weight in weights]).square().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        weights = ctx.saved_tensors
        return tuple(torch._foreach_mul(weights, 2 * gradient / sum(weight.numel() for weight in weights)))


class CameraAffine(nn.Module):
    """An affine map of colours, 3x4, for every training camera: its exposure, white balance and black level.

    An avatar and all maps together can exchange one common map without changing
    any picture. That freedom is taken away at the root: the maps are the
    identity plus a deviation from the mean of all deviations, so their mean, which is
    what a camera that was not trained on gets, is the identity at all times,
    and the avatar keeps the colours of the average camera.
    """

    def __init__(self, camera_ids: Sequence[str]) -> None:
        """One map for each different id, all of them the identity."""
        super().__init__()
        self.camera_ids = sorted(set(camera_ids))
        if not self.camera_ids:
            raise UserError("--color_per_camera needs at least one training camera")
        self._rows = {camera_id: row for row, camera_id in enumerate(self.camera_ids)}
        self.deviation = nn.Parameter(torch.zeros(len(self.camera_ids), 3, 4))

    def deviations(self) -> Tensor:
        """[C, 3, 4] what is added to the identity for each camera; their mean is zero."""
        return self.deviation - self.deviation.mean(dim=0)

    def matrix(self, camera_id: str) -> Tensor:
        """[3, 4] the map of a camera: colour -> M[:, :3] colour + M[:, 3]. The mean, hence the identity, if unknown."""
        identity = torch.eye(3, 4, dtype=self.deviation.dtype, device=self.deviation.device)
        row = self._rows.get(camera_id)
        return identity if row is None else identity + self.deviations()[row]

    def forward(
        self,
        image: Tensor,  # [3, H, W]  over the background
        camera_id: str,
        alpha: Tensor | None = None,  # [1, H, W]  coverage, 0..1
        background: Tensor | None = None,  # [3]        what shows where nothing covers
    ) -> Tensor:  # [3, H, W]  not clamped
        """The picture as this camera would have taken it.

        With `alpha` and `background` only the subject is mapped: a background
        composited behind it afterwards never went through the camera.
        """
        row = self._rows.get(camera_id)
        if row is None:
            return image
        change = self.deviations()[row]
        pixels = image.flatten(1)
        if alpha is None or background is None:
            return image + torch.addmm(change[:, 3:], change[:, :3], pixels).view_as(image)
        # One product: change (image - (1 - alpha) background) + alpha offset
        #            = change image + alpha (change background + offset) - change background
        tint = change[:, :3] @ background[:, None]
        mixed = torch.cat([pixels, alpha.flatten(1)])
        factors = torch.cat([change[:, :3], tint + change[:, 3:]], dim=1)
        return image + torch.addmm(-tint, factors, mixed).view_as(image)

    def regularizer(self) -> Tensor:
        """The sum of the squared distances of all maps from the identity, a scalar."""
        return self.deviations().square().sum()


class ColorCalibration:
    """What the training loop and the renderer call: the network, the cameras' maps, and their optimizer."""

    def __init__(
        self,
        camera_ids: Sequence[str] = (),  # of the training views; used when `per_camera`
        *,
        network: bool = True,  # the network shared by all cameras
        hidden_dim: int = 16,
        num_layers: int = 3,
        per_camera: bool = False,  # an affine map for each camera
        rate: float = RATE,  # learning rate
        background: Tensor | None = None,  # [3] composited behind the subject after the picture was taken
        generator: torch.Generator | None = None,  # on the CPU
        device: torch.device | str = "cpu",
    ) -> None:
        """Everything starts as the identity.

        Raises:
            UserError: sizes of the network that are out of range.
        """
        self.background = None if background is None else background.to(device)
        self.parts = nn.ModuleDict()
        if network:
            self.parts["network"] = ColorCalibrationNetwork(hidden_dim, num_layers, generator=generator)
        if per_camera:
            self.parts["cameras"] = CameraAffine(camera_ids)
        if not self.parts:
            raise ValueError("neither a network nor cameras: use NoColorCalibration")
        self.parts.to(device)
        self.rate = rate
        self.optimizer = torch.optim.Adam(self.parts.parameters(), lr=rate, fused=True)
        self.optimizers = [self.optimizer]

    def set_step(self, step: int) -> None:
        """Says which iteration is coming: the network learns in every fourth, the cameras' maps in each."""
        if "network" in self.parts:
            self.parts["network"].requires_grad_(step % LEARN_EVERY == 0)

    def __call__(self, image: Tensor, camera_id: str, alpha: Tensor | None = None) -> Tensor:
        """[3, H, W] -> [3, H, W]: the rendering of a camera in the colours of its photographs.

        With `alpha` [1, H, W], and the background given at the start, that
        background stays out of the cameras' maps. A camera that was not trained on gets their mean.
        """
        if "cameras" in self.parts:
            image = self.parts["cameras"](image, camera_id, alpha, self.background)
        return self.parts["network"](image) if "network" in self.parts else image

    def regularizer(self) -> Tensor:
        """A scalar: mean squared weight of the network and squared distances of the maps from the identity."""
        return sum(part.regularizer() for part in self.parts.values())

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.parts.parameters()

    # ---- checkpoint and file ------------------------------------------------

    def description(self) -> dict[str, Any]:
        """What has to agree before weights can be taken over: plain numbers and strings."""
        network, cameras = (self.parts[name] if name in self.parts else None for name in ("network", "cameras"))
        return {
            "hidden_dim": network.hidden_dim if network else 0,
            "num_layers": network.num_layers if network else 0,
            "camera_ids": list(cameras.camera_ids) if cameras else [],
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {**self.description(), "weights": self.parts.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            KeyError, ValueError: the state is of another network or of other cameras.
        """
        self._load_weights(state)
        own = {name: value for name, value in self.optimizer.param_groups[0].items() if name != "params"}
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0].update(own)  # the rate and all else are this run's
        for parameter, moments in self.optimizer.state.items():  # PyTorch's fused kernel trusts their sizes
            for name, shape in (("exp_avg", parameter.shape), ("exp_avg_sq", parameter.shape), ("step", ())):
                if moments[name].shape != shape or moments[name].dtype != torch.float32:
                    raise ValueError(f"{name} has shape {tuple(moments[name].shape)}, expected {tuple(shape)}")

    def _load_weights(self, state: Mapping[str, Any]) -> None:
        for name, mine in self.description().items():
            theirs = state[name]
            if type(theirs) is not type(mine) or name == "camera_ids" and not all(type(item) is str for item in theirs):
                raise ValueError(f"the colour calibration has {name} of type {type(theirs).__name__}")
            if theirs != mine:
                raise ValueError(f"the colour calibration has {name} {theirs!r}, expected {mine!r}")
        try:
            self.parts.load_state_dict(state["weights"])
        except RuntimeError as error:  # PyTorch's word for missing tensors and other shapes
            raise ValueError(one_line(error)) from error

    def save(self, path: str | Path) -> None:
        """Writes what rendering needs, without the optimizer, to `color_calibration.pt`."""
        content = {"format": FORMAT, "version": VERSION, **self.description(), "weights": self.parts.state_dict()}
        save_tensors(path, content)

    @classmethod
    def load(
        cls, path: str | Path, *, background: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> ColorCalibration:
        """Reads a file of `save`, without running code from it.

        Raises:
            UserError: missing, damaged, or not such a file.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path} does not exist: render with --no_color_calibration to do without it")
        try:
            content = load_tensors(path)
            if (
                not isinstance(content, dict)
                or type(content["format"]) is not str
                or type(content["version"]) is not int
            ):
                raise ValueError("no format and version")
            if content["format"] != FORMAT or content["version"] != VERSION:
                raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
            if not all(torch.isfinite(weight).all() for weight in content["weights"].values()):
                raise ValueError("weights that are not finite")
            size, layers, cameras = (content[name] for name in ("hidden_dim", "num_layers", "camera_ids"))
            # The file's own sizes are built before its weights are compared with them.
            held = sum(weight.numel() for weight in content["weights"].values())
            if not (
                type(size) is type(layers) is int
                and max(size, layers) <= held
                and isinstance(cameras, list)
                and all(type(camera) is str for camera in cameras)
            ):
                raise ValueError("sizes that do not fit its weights")
            calibration = cls(
                cameras,
                network=layers > 0,
                hidden_dim=size,
                num_layers=layers,
                per_camera=bool(cameras),
                background=background,
                device=device,
            )
            calibration._load_weights(content)
        # A damaged or hostile file can fail anywhere in the unpickler and after it.
        except Exception as error:
            raise UserError(f"{path} is not a colour calibration of this program ({one_line(error)[:200]})") from error
        calibration.parts.requires_grad_(False)
        return calibration


class NoColorCalibration:
    """What `ColorCalibration` is when it is switched off."""

    optimizers: tuple[torch.optim.Optimizer, ...] = ()

    def set_step(self, step: int) -> None:
        """Nothing."""

    def __call__(self, image: Tensor, camera_id: str, alpha: Tensor | None = None) -> Tensor:
        """The image itself."""
        return image

    def regularizer(self) -> float:
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accepts any state: what another run had calibrated is left out."""

    def save(self, path: str | Path) -> None:
        """Writes nothing; removes a file that an earlier run left there."""
        Path(path).unlink(missing_ok=True)
