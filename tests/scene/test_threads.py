"""What depends on the number of threads in PyTorch, by one thread: the same bits, and gradients that are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_head import toy_head

from ops import losses
from ops.one_thread import on_one_thread
from scene.flame import Flame, FlameParameters
from scene.flame.parameters import MOTION


def test_gradients_and_threads() -> None:
    torch.set_num_threads(2)
    a, b = torch.randn(5, 3, requires_grad=True), torch.randn(3, 2)
    seen = []

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return (a @ b).sin()

    on_one_thread(product, a, b).sum().backward()
    assert seen == [1] and torch.get_num_threads() == 2 and b.grad is None
    expected = a.detach().requires_grad_()
    (expected @ b).sin().sum().backward()
    assert torch.equal(a.grad, expected.grad)
    with torch.no_grad():
        assert not on_one_thread(product, a, b).requires_grad


@pytest.mark.parametrize("threads", [2, 3])
def test_dynamic_offsets_have_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    head = toy_head(vertices=5000, faces=300, n_shape=50, n_expr=60)
    generator = np.random.default_rng(0)
    arrays = {name: generator.normal(size=(4, width)).astype(np.float32) * 0.1 for name, width in MOTION.items()}
    arrays |= {"expr": generator.normal(size=(4, head.n_expr)).astype(np.float32)}
    arrays |= {"shape": generator.normal(size=head.n_shape).astype(np.float32)}
    arrays |= {"dynamic_offset": generator.normal(size=(4, head.n_vertices, 3)).astype(np.float32) * 1e-3}
    laplacian = losses.uniform_laplacian(head.faces, head.n_vertices)

    def step(count: int) -> list[torch.Tensor]:
        torch.set_num_threads(count)
        parameters = FlameParameters(arrays, None, head)
        parameters.train_dynamic_offset()
        vertices = Flame(head, device="cpu").vertices(parameters, 2)
        offset = parameters.dynamic_row(2)
        every = torch.cat([parameters.dynamic_offset[:2], offset[None], parameters.dynamic_offset[3:]])
        terms = [vertices.square().sum(), losses.dynamic_offset(offset), losses.laplacian(offset, laplacian)]
        sum([*terms, losses.dynamic_offset_std(every)]).backward()
        return [vertices.detach(), parameters.row(2).grad, offset.grad, *(term.detach() for term in terms[1:])]

    for one, many in zip(step(1), step(threads)):
        assert torch.equal(one, many)
