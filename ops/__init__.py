"""What computes: the types that pass between the rooms, and every operation as PyTorch twin and kernel."""

# --rasterizer: each but the first is a module of gaussian_renderer/backends. Here, without PyTorch, for `arguments`.
BACKENDS = ("auto", "native", "gsplat", "triton", "dgr", "reference")
