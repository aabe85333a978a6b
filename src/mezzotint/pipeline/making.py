"""A request at work on one system: everything its pictures share, and each picture as rows that want an answer.

`generate` runs the pictures of one request one after another; a server keeps many of these and gives each a turn. Both
get the same bits: nothing here is shared between two requests but the networks.
"""

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image
from torch import Tensor

from mezzotint.diffusion.sampling import Rows
from mezzotint.errors import MezzotintError
from mezzotint.images import encode
from mezzotint.kernels.autoencoder import Bands, finished
from mezzotint.pipeline.condition import Sides, told
from mezzotint.pipeline.drive import Predictor, Watch
from mezzotint.pipeline.picture import Studio
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.resolve import Resolved, resolve
from mezzotint.pipeline.result import Record, infotext, record

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System


class Picture(NamedTuple):
    """A finished picture and the two texts that its file carries."""

    image: Image.Image
    seed: int
    infotext: str
    record: Record

    def png(self) -> bytes:
        """The picture as a PNG file with both texts."""
        return encode(self.image, self.infotext, self.record)


class Making:
    """One request on one system. A wrong request is refused here; prompts are read when the first picture begins."""

    def __init__(
        self, system: "System", asked: Request, *, resolved: Resolved | None = None, watch: Watch | None = None
    ) -> None:
        """`resolved`, if it is known already; `watch` looks on and changes nothing.

        Raises: RequestError if the system cannot do what is asked.
        """
        self.system, self.asked, self.watch = system, asked, watch
        self.resolved = resolve(system, asked) if resolved is None else resolved
        assert self.resolved.request.seed is not None
        self.seeds = [self.resolved.request.seed + i for i in range(asked.count)]

    @property
    def steps(self) -> int:
        """Sampling steps of each picture."""
        return len(self.resolved.levels) - 1

    @property
    def evaluations(self) -> int:
        """Network evaluations of all pictures together."""
        return self.resolved.evaluations * len(self.seeds)

    @cached_property
    def sides(self) -> Sides:
        """The prompts as the networks are told them. Raises: RequestError for one that does not fit, if strict."""
        return told(self.system, self.resolved.request)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the prompts could not be told."""
        return self.sides.warnings

    @cached_property
    def predict(self) -> Predictor:
        """Rows of any picture of this request to their x0."""
        networks = {"base": self.system.network}
        if self._refiner is not None:
            networks["refiner"] = self._refiner.network
        return Predictor(networks, self.watch)

    def rows(self, i: int) -> Rows:
        """The trajectory of picture i: yields rows, is sent their x0, returns the latent."""
        return self._studio.rows(self.seeds[i])

    def step(self, sigma: float, before: int = 0) -> int:
        """Sampling steps finished once the rows at this sigma have been answered, of `steps`; never fewer than before.

        A sampler may ask at sigmas between levels and below the next one.
        """
        return min(max(before, sum(level.sigma > sigma for level in self.resolved.levels) + 1), self.steps)

    def finished(self, i: int, latent: Tensor) -> Picture:
        """Picture i from its latent. Raises: MezzotintError, see `finishing`."""
        return finished(self.finishing(i, latent))

    def finishing(self, i: int, latent: Tensor) -> Bands[Picture]:
        """`finished` that yields now and then, so that closing it stops there.

        Raises: MezzotintError if the latent is not finite: a picture that is black for no reason is not handed out.
        """
        if not latent.isfinite().all():
            raise MezzotintError("the picture came out as NaN: try another sampler, fewer options, or dtype float32")
        image = yield from self._studio.finishing(latent)
        model, request = self.system.identity(), self.resolved.request
        return Picture(
            image,
            self.seeds[i],
            infotext(request, self.seeds[i], model, self.system.versions()),
            record(
                asked=self.asked,
                resolved=request,
                seed=self.seeds[i],
                levels=self.resolved.levels,
                model=model,
                execution=self.system.execution(),
                warnings=self.warnings,
            ),
        )

    def forget(self) -> None:
        """Let go of what was computed for its pictures; where there are many requests, memory is for one."""
        for name in ("sides", "predict", "_studio"):
            self.__dict__.pop(name, None)

    @property
    def _refiner(self) -> "System | None":
        name = self.resolved.request.refiner
        return None if name is None else self.system.companion(name)

    @cached_property
    def _studio(self) -> Studio:
        studio = Studio(self.system, self.resolved, self.sides, watch=self.watch)
        if self._refiner is not None:
            studio.refiner = self._refiner, told(self._refiner, self.resolved.request)
        return studio
