"""Stages: what stands between a sampler's query and the network. One stage serves one picture.

Guidance is linear, so it may be done on x0: with the same x, x0 is an affine function of the network's output and the
result is the same as on the output. Only the rescaling is not, and goes back to the output for it.

Sources: Ho and Salimans 2022, arXiv:2207.12598; Lin et al. 2023, arXiv:2305.08891, section 3.4 (rescale);
Kynkäänniemi et al. 2024, arXiv:2404.07724 (interval); Lugmayr et al. 2022, arXiv:2201.09865, eq. 8 (masked).
"""

from collections.abc import Generator

from torch import Tensor

from mezzotint.diffusion.parameterisation import Parameterisation, output_from, x0_from
from mezzotint.diffusion.sampling import Query, Row, Stage
from mezzotint.errors import ConfigError

Answer = Generator[list[Row], list[Tensor], Tensor]


def unguided(conditioning: object, network: str = "base") -> Stage:
    """One row, as it is."""

    def stage(q: Query) -> Answer:
        (x0,) = yield [Row(q.x, q.sigma, q.t, conditioning, network)]
        return x0

    return stage


def guided(
    conditional: object,
    unconditional: object,
    scale: float,
    *,
    rescale: float = 0.0,
    parameterisation: Parameterisation | None = None,
    interval: tuple[float, float] | None = None,
    every: int = 1,
    network: str = "base",
) -> Stage:
    """Classifier-free guidance: from the unconditional x0 past the conditional one. Two rows; one where scale is 1.

    `rescale` brings the standard deviation of the guided *output* of the network back towards the conditional one's by
    that share, and needs the network's parameterisation. Outside `interval`, lowest and highest sigma, there is no
    guidance and only one row. With `every` above 1 the unconditional side is asked at every so many steps only;
    between them, the last difference of the two sides serves again: an approximation that halves most steps.

    Raises: ConfigError if rescale is given without the parameterisation.
    """
    if rescale and parameterisation is None:
        raise ConfigError("guidance rescale works on the network's output: its parameterisation is needed")
    alone = unguided(conditional, network)
    kept: Tensor | None = None  # conditional minus unconditional x0, of the last step that asked both

    def stage(q: Query) -> Answer:
        nonlocal kept
        if scale == 1 or (interval and not interval[0] <= q.sigma <= interval[1]):
            return (yield from alone(q))
        if kept is not None and q.step % every:
            conditional_x0 = yield from alone(q)
            unconditional_x0 = conditional_x0 - kept
        else:
            conditional_x0, unconditional_x0 = yield [
                Row(q.x, q.sigma, q.t, conditional, network),
                Row(q.x, q.sigma, q.t, unconditional, network, slot="unconditional"),
            ]
            kept = conditional_x0 - unconditional_x0
        x0 = unconditional_x0 + scale * (conditional_x0 - unconditional_x0)
        if parameterisation and rescale:
            output = output_from(x0, q.x, q.sigma, parameterisation)
            wanted = output_from(conditional_x0, q.x, q.sigma, parameterisation)
            ratio = _deviation(wanted) / _deviation(output)
            x0 = x0_from(output * (rescale * ratio + 1 - rescale), q.x, q.sigma, parameterisation)
        return x0

    return stage


def remembering(stage: Stage, memory: object) -> Stage:
    """`stage` with all its rows given the memory of their picture: networks may then reuse what they computed."""

    def stage_with_memory(q: Query) -> Answer:
        asked = stage(q)
        try:
            rows = next(asked)
            while True:
                rows = asked.send((yield [row._replace(memory=memory) for row in rows]))
        except StopIteration as finished:
            return finished.value

    return stage_with_memory


def _deviation(output: Tensor) -> Tensor:
    return output.std(dim=tuple(range(1, output.ndim)), keepdim=True)  # per picture


def masked(stage: Stage, latent: Tensor, mask: Tensor, noise: Tensor) -> Stage:
    """`stage` inside the mask (1), `latent` outside (0): inpainting with any network.

    Outside, the network sees the latent with `noise` at the level asked for, and x0 is the latent itself, so that every
    sampler ends on it. A fractional mask mixes both.
    """

    def mixed(inside: Tensor, outside: Tensor) -> Tensor:
        return mask * inside + (1 - mask) * outside

    def inner(q: Query) -> Answer:
        x0 = yield from stage(q._replace(x=mixed(q.x, latent + q.sigma * noise)))
        return mixed(x0, latent)

    return inner
