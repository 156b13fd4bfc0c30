"""Eigenvalues of a field's Jacobian J_l = df_l/dp at the state that the layer read, without forming the matrix.

J acts on all elements of the state, (batch, tokens, width). ARPACK's Arnoldi iteration (scipy) needs only its product
with vectors, which automatic differentiation computes without the matrix.

In a causal model a token does not depend on later ones. So J is block lower triangular in the tokens, and its
eigenvalues are those of its diagonal blocks d f(p)_t / d p_t, each width x width (our remark; a test confirms it).
`token_block` returns one block as a matrix. The blocks below the diagonal do not change the eigenvalues, but they make
J far from normal: a perturbation may grow for many layers faster than any eigenvalue says; see `perturbation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from revformers.engine.field import Field
from revformers.errors import require_package

Product = Callable[[Tensor], Tensor]
"""Maps a tangent v, of the shape and dtype of a state, to J v."""

KINDS = {"magnitude": "LM", "real_high": "LR", "real_low": "SR", "imaginary": "LI"}
"""The extreme eigenvalues, as attributes of `Extremes`, and their names in ARPACK."""

DENSE_UP_TO = 256
"""Elements of a state up to which the matrix is formed: ARPACK would need as many products."""


@dataclass(frozen=True)
class Extremes:
    """Extreme eigenvalues; None for one that did not converge.

    Attributes:
        magnitude: that of largest magnitude.
        real_high: that of largest real part.
        real_low: that of smallest real part.
        imaginary: that of largest imaginary part; the conjugate belongs to it.
        residual: the largest |J v - lambda v| / |v| of those found; None if none was.
        products: number of products J v that were computed.

    """

    magnitude: complex | None
    real_high: complex | None
    real_low: complex | None
    imaginary: complex | None
    residual: float | None
    products: int

    @property
    def found(self) -> list[complex]:
        """The eigenvalues that converged."""
        return [value for name in KINDS if (value := getattr(self, name)) is not None]


def jacobian_product(field: Field, state: Tensor) -> Product:
    """Return the function v -> J v of `field` at `state`; v and the result have the shape and dtype of `state`.

    The field is evaluated and differentiated once: u -> J^T u is linear, and its derivative, a second backward pass, is
    J v. If an operation has no second derivative, every product is a forward-mode derivative instead. Fused attention
    has neither: call this function inside `walk.differentiable_attention`, and the result as well.
    """
    try:
        return _by_transposing_twice(field, state)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # which NotImplementedError is as well
        return partial(_forward_derivative, field, state)


def _by_transposing_twice(field: Field, state: Tensor) -> Product:
    with torch.enable_grad():
        leaf = state.detach().requires_grad_()
        update = field(leaf)
        weights = torch.zeros_like(update, requires_grad=True)
        if not update.requires_grad:
            return torch.zeros_like
        (transposed,) = torch.autograd.grad(update, leaf, weights, create_graph=True, allow_unused=True)
    if transposed is None:
        return torch.zeros_like

    def product(tangent: Tensor) -> Tensor:
        (derivative,) = torch.autograd.grad(transposed, weights, tangent, retain_graph=True, allow_unused=True)
        return torch.zeros_like(tangent) if derivative is None else derivative.to(tangent.dtype)

    # an operation without a second derivative may drop its part without an error, but then <u, J v> is not <J^T u, v>
    v, u = (torch.sin(torch.arange(1.0, like.numel() + 1)).view_as(like).to(like) for like in (state, update))
    image, (pulled,) = product(v), torch.autograd.grad(update, leaf, u, retain_graph=True)
    difference = (image.double() * u).sum() - (pulled.double() * v).sum()
    if not difference.abs() <= 1e-3 * image.double().norm() * u.double().norm():
        raise RuntimeError("The second derivative of the field is not complete.")
    return product


def _forward_derivative(field: Field, state: Tensor, tangent: Tensor) -> Tensor:
    with torch.no_grad(), forward_ad.dual_level():
        derivative = forward_ad.unpack_dual(field(forward_ad.make_dual(state, tangent))).tangent
    return torch.zeros_like(state) if derivative is None else derivative.to(state.dtype)


def composed(*products: Product) -> Product:
    """Return the product with the last matrix, then with the one before it, and so on: composed(B, A)(v) = B A v."""

    def apply(tangent: Tensor) -> Tensor:
        for product in reversed(products):
            tangent = product(tangent)
        return tangent

    return apply


def extreme_eigenvalues(
    product: Product, like: Tensor, *, tolerance: float = 1e-3, krylov: int = 48, restarts: int = 10, seed: int = 0
) -> Extremes:
    """Return the extreme eigenvalues of a matrix that is given by its product with vectors.

    Args:
        product: v -> J v; see `jacobian_product`.
        like: a tensor of v's shape, dtype (float32 or float64) and device.
        tolerance: of ARPACK's residual, relative to the eigenvalue; 0 asks for the precision of the dtype. For a matrix
            that is far from normal it does not bound the error of an eigenvalue.
        krylov: vectors of the Krylov space.
        restarts: after how many restarts an eigenvalue counts as not converged.
        seed: of the first vector.

    Raises:
        MissingPackageError: without scipy.
        ValueError: if a product is not finite.

    """
    linalg = require_package("scipy.sparse.linalg", "analyze", "Finding eigenvalues")
    size, count, scale = like.numel(), 0, 1.0

    def multiply(vector: Any) -> Any:
        nonlocal count
        count += 1
        tangent = torch.from_numpy(np.ascontiguousarray(vector)).to(like).view_as(like)
        image = product(tangent).flatten().cpu().numpy() / scale
        if not np.isfinite(image).all():
            raise ValueError("The derivative of the field is not finite, so it has no eigenvalues; check the weights.")
        return image

    if size <= DENSE_UP_TO:
        matrix = np.stack([multiply(unit) for unit in np.eye(size)], axis=1)
        values, vectors = np.linalg.eig(matrix.astype(np.float64))
        all_pairs = [(complex(value), vectors[:, place]) for place, value in enumerate(values)]
        pairs = dict.fromkeys(KINDS, all_pairs)
    else:
        dtype = np.float64 if like.dtype == torch.float64 else np.float32
        operator = linalg.LinearOperator((size, size), matvec=multiply, dtype=dtype)
        first = np.random.default_rng(seed).normal(size=size).astype(dtype)
        image = multiply(first)
        if not image.any():  # a field that is zero everywhere, which ARPACK refuses
            return Extremes(0j, 0j, 0j, 0j, residual=0.0, products=count)
        # ARPACK counts values far below 1 as converged too early, and the squares of large ones overflow
        scale = float(np.abs(image).max())
        # two values, because complex ones come in conjugate pairs
        options = {"k": 2, "v0": first, "ncv": min(krylov, size - 1), "tol": tolerance, "maxiter": restarts}
        pairs = {}
        for kind, which in KINDS.items():
            try:
                values, vectors = linalg.eigs(operator, which=which, **options)
            except linalg.ArpackNoConvergence as stopped:
                values, vectors = stopped.eigenvalues, stopped.eigenvectors
            pairs[kind] = [(complex(value), vectors[:, place]) for place, value in enumerate(values)]
    chosen = {kind: max(found, key=partial(_order, kind)) for kind, found in pairs.items() if found}
    residuals = [_residual(multiply, value, vector) for value, vector in chosen.values()]
    upper = {kind: scale * complex(value.real, abs(value.imag)) for kind, (value, _) in chosen.items()}
    residual = scale * max(residuals) if residuals else None
    return Extremes(**{kind: upper.get(kind) for kind in KINDS}, residual=residual, products=count)


def token_block(field: Field, state: Tensor, token: int, *, at_a_time: int = 64) -> Any:
    """Return d f(p)_t / d p_t as a matrix, float64[width, width], for a state of one sequence.

    Args:
        field: f_l of a causal model; it must not depend on the number of sequences in a batch.
        state: (1, tokens, width).
        token: t.
        at_a_time: columns that are computed in one batch.

    """
    width, seen = state.shape[-1], state.shape[1]
    columns = []
    for block in torch.eye(width, dtype=state.dtype, device=state.device).split(at_a_time):
        tangent = torch.zeros(len(block), seen, width, dtype=state.dtype, device=state.device)
        tangent[:, token] = block
        derivative = jacobian_product(field, state.expand(len(block), -1, -1).contiguous())(tangent)
        columns.append(derivative[:, token].double().cpu())
    return torch.cat(columns).T.numpy()


def _order(kind: str, pair: tuple[complex, Any]) -> float:
    value = pair[0]
    orders = {"magnitude": abs(value), "real_high": value.real, "real_low": -value.real, "imaginary": abs(value.imag)}
    return orders[kind]


def _residual(multiply: Callable[[Any], Any], value: complex, vector: Any) -> float:
    """Return |J v - lambda v| / |v|."""
    image = multiply(vector.real) + 1j * (multiply(vector.imag) if np.iscomplexobj(vector) else 0.0)
    return float(np.linalg.norm(image - value * vector) / np.linalg.norm(vector))
