"""Color calibration: a small network for the whole rig, and an affine map for each of its cameras.

What the cameras did to the colors (tone curve, exposure, white balance) need
not be baked into the avatar. The picture passes first through the affine map
of its camera and then through one network shared by all; both start as the
identity.

What all cameras share, the avatar's own colors can take over: only the sum of the two is seen. So the cameras' maps
are the identity in their mean, and the network is held near it over the colors that occur (`ColorCalibration.drift`).
Otherwise both drift apart, and the avatar has wrong colors in every other program.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.color_lattice import color_lattice, lattice_colors
from utils.errors import UserError, one_line
from utils.tensor_files import save_tensors
from utils.tensor_reader import load_tensors

FILE_NAME = "color_calibration.pt"  # beside the PLY
FORMAT = "efficient-gaussian-avatars colour calibration"
VERSION = 1
MAX_PARAMETERS = 10_000  # of the network
RATE = 1e-3  # found with benchmarks/color_network.py --rates
# The network learns in one iteration of so many, which saves more than a quarter of its cost. Its few
# hundred weights see every pixel of every view, so that fewer steps do.
LEARN_EVERY = 4
SIDE = 13  # vertices along each channel of the lattice on which the network is evaluated
RESIDUAL_LIMIT = 10.0  # of |r|, the shift of a logit
DRIFT_STRIDE = 8  # pixels both ways: so few of a picture's say which colors occur


class ColorCalibrationNetwork(nn.Module):
    """A map of colors to colors: 1x1 convolutions with ReLU, the identity until it is trained.

    Its outputs r shift the logits of a color, x e^r / (1 - x + x e^r). It sees only the three numbers of a pixel, so it
    is evaluated on a lattice of colors, and e^r interpolated for each pixel (`ops.color_lattice`), in training as in
    rendering: its size costs nothing per pixel.

    Black and white stay what they are, so a composited white background cannot
    get a tint. The last layer starts at zero, hence no shift.

    A rendered picture may leave [0, 1]. It is clamped first, and its gradient
    passes the clamp where a step down the gradient leads back inside.
    """

    vertices: Tensor  # [SIDE^3, 3]

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
        widths = (3, *[hidden_dim] * (num_layers - 1), 3)
        count = sum(m * (n + 1) for n, m in zip(widths, widths[1:]))
        if count >= MAX_PARAMETERS:
            raise UserError(
                f"the colour network would have {count:,} parameters, not under {MAX_PARAMETERS:,}: "
                "lower --color_net_hidden_dim or --color_net_layers"
            )
        self.hidden_dim, self.num_layers = hidden_dim, num_layers
        convolutions = [nn.Conv2d(n, m, kernel_size=1) for n, m in zip(widths, widths[1:])]
        self.convolutions = nn.ModuleList(convolutions)
        with torch.no_grad():
            for convolution in convolutions[:-1]:
                # He et al. 2015; the biases spread the kinks of the ReLUs over the colors that occur.
                weight, bias = convolution.parameters()
                weight.normal_(0.0, math.sqrt(2 / convolution.in_channels), generator=generator)
                bias.uniform_(-0.5, 0.5, generator=generator)
            for last in convolutions[-1].parameters():
                last.zero_()
        self.register_buffer("vertices", lattice_colors(SIDE), persistent=False)

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
        return color_lattice(image, self.residual(self.vertices).exp().view(SIDE, SIDE, SIDE, 3))

    def residual(
        self,
        colors: Tensor,  # [M, 3]  0..1
    ) -> Tensor:  # [M, 3]
        """The shift of the logits."""
        weights = list(self.parameters())
        *hidden, last = zip(weights[::2], weights[1::2])
        for weight, bias in hidden:
            colors = F.linear(colors, weight.flatten(1), bias).relu()
        return F.linear(colors, last[0].flatten(1), last[1]).clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)

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
    """An affine map of colors, 3x4, for every training camera: its exposure, white balance and black level.

    An avatar and all maps together can exchange one common map without changing
    any picture. That freedom is taken away at the root: the maps are the
    identity plus a deviation from the mean of all deviations, so their mean, which is
    what a camera that was not trained on gets, is the identity at all times,
    and the avatar keeps the colors of the average camera.
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
        """[3, 4] the map of a camera: color -> M[:, :3] color + M[:, 3]. The mean, hence the identity, if unknown."""
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
        self.network = ColorCalibrationNetwork(hidden_dim, num_layers, generator=generator) if network else None
        self.cameras = CameraAffine(camera_ids) if per_camera else None
        parts: dict[str, ColorCalibrationNetwork | CameraAffine | None] = {
            "network": self.network,
            "cameras": self.cameras,
        }
        self.parts = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
        if not self.parts:
            raise ValueError("neither a network nor cameras: use NoColorCalibration")
        self.parts.to(device)
        self.rate = rate
        self.optimizer = torch.optim.Adam(self.parts.parameters(), lr=rate, fused=True)
        self.optimizers = [self.optimizer]

    def set_step(self, step: int) -> None:
        """Says which iteration is coming: the network learns in every fourth, the cameras' maps in each."""
        if self.network is not None:
            self.network.requires_grad_(step % LEARN_EVERY == 0)

    def __call__(self, image: Tensor, camera_id: str, alpha: Tensor | None = None) -> Tensor:
        """[3, H, W] -> [3, H, W]: the rendering of a camera in the colors of its photographs.

        With `alpha` [1, H, W], and the background given at the start, that
        background stays out of the cameras' maps. A camera that was not trained on gets their mean.
        """
        if self.cameras is not None:
            image = self.cameras(image, camera_id, alpha, self.background)
        return image if self.network is None else self.network(image)

    def drift(self, image: Tensor) -> Tensor:
        """The mean square of x (1 - x) r, the network's change to first order, over colors x of a rendering [3, H, W].

        The gradient reaches the network only. With this in the loss the identity is the optimum wherever the avatar's
        own colors can do the same.
        """
        if self.network is None:
            return torch.zeros((), device=image.device)
        colors = image.detach()[:, ::DRIFT_STRIDE, ::DRIFT_STRIDE].flatten(1).T.clamp(0, 1)
        return (colors * (1 - colors) * self.network.residual(colors)).square().mean()

    def regularizer(self) -> Tensor | float:
        """A scalar: mean squared weight of the network and squared distances of the maps from the identity."""
        return sum(part.regularizer() for part in (self.network, self.cameras) if part is not None)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.parts.parameters()

    # ---- checkpoint and file ------------------------------------------------

    def description(self) -> dict[str, Any]:
        """What has to agree before weights can be taken over: plain numbers and strings."""
        return {
            "hidden_dim": self.network.hidden_dim if self.network else 0,
            "num_layers": self.network.num_layers if self.network else 0,
            "camera_ids": list(self.cameras.camera_ids) if self.cameras else [],
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
            stored = sum(weight.numel() for weight in content["weights"].values())
            if not (
                type(size) is type(layers) is int
                and max(size, layers) <= stored
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
