"""Everything that an evaluation works with, from its spec: pictures, networks, the model; each loaded when first used.

The process that leads and every worker build the same from the same spec, so that a job is two numbers: a set and a
chunk.
"""

import itertools
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mezzotint.checkpoints.clip import read_clip
from mezzotint.checkpoints.files import read_json, write_json
from mezzotint.errors import ConfigError, RequestError
from mezzotint.evaluation.clip_score import Texts, read_texts
from mezzotint.evaluation.features import Extractor, extractor
from mezzotint.evaluation.prompt_sets import PromptSet, read_prompts
from mezzotint.evaluation.spec import REFERENCE, SINGLE, TRAINING, EvaluationSpec
from mezzotint.evaluation.tower import place_of
from mezzotint.evaluation.work import SETS, GivenPictures, MadePictures, Source, StoredPictures, WorkSet, key_of, stored
from mezzotint.pipeline.system import System
from mezzotint.prompts.tokenizer import bundled, from_folder

JUDGE = "evaluator"
STATISTICS = (".npz", ".safetensors")
SPEC = "spec.json"
CLIPS = {"clip", JUDGE}  # extractors that give features of a CLIP


class Job(NamedTuple):
    """Which chunk of which set."""

    place: int
    chunk: int


class Bench:
    """What is measured and what measures, for one spec."""

    def __init__(self, spec: EvaluationSpec) -> None:
        self.spec = spec
        self._loaded: dict[str, Extractor] = {}

    @cached_property
    def system(self) -> System:
        """The model that makes pictures."""
        return self.spec.source.load()

    @cached_property
    def prompt_set(self) -> PromptSet | None:
        """The prompts, if the spec names some."""
        return None if self.spec.prompts is None else read_prompts(self.spec.prompts).first(self.spec.limit)

    @cached_property
    def clip(self) -> Extractor | None:
        """The image tower of the CLIP that scores."""
        if "clip" not in self.spec.chosen or self.spec.clip is None:
            return None
        return self._extractor(JUDGE if self.spec.clip == JUDGE else f"clip:{self.spec.clip}")

    @cached_property
    def distances(self) -> tuple[Extractor, ...]:
        """Extractors whose features are compared.

        Raises: ConfigError if CMMD is asked for without a CLIP.
        """
        spec = self.spec
        if not spec.chosen - {"clip"}:
            return ()
        found = [self._extractor(word) for word in spec.features]
        if "cmmd" in spec.chosen and not any(one.name in CLIPS for one in found):
            if spec.clip is None:
                raise ConfigError("cmmd compares features of a CLIP: --features clip:PATH (or evaluator), or --clip")
            found.append(self._extractor(JUDGE if spec.clip == JUDGE else f"clip:{spec.clip}"))
        return distinct(found)

    @cached_property
    def reference(self) -> Path | None:
        """The statistics file that is compared with, if the reference is one."""
        path = None if self.spec.against is None else Path(self.spec.against)
        return path if path is not None and path.is_file() and path.name.endswith(STATISTICS) else None

    @cached_property
    def measured(self) -> tuple[WorkSet, ...]:
        """The sets that are measured: the given one, or one for each setting of the sweep."""
        spec = self.spec
        if spec.model is None:
            return (self._set(SINGLE, self._given(spec.pictures, spec.limit, self.prompt_set)),)
        assert self.prompt_set is not None
        grid = list(itertools.product(spec.guidance or (None,), spec.steps or (None,)))
        named = [("-".join(_named(guidance, steps)) or "made", guidance, steps) for guidance, steps in grid]
        return tuple(self._set(name, self._made(name, guidance, steps)) for name, guidance, steps in named)

    @cached_property
    def sets(self) -> tuple[WorkSet, ...]:
        """Every set that features are computed of, in the order of the work."""
        spec = self.spec
        found = list(self.measured)
        if spec.against is not None and self.reference is None and self.distances:
            found.append(self._other(REFERENCE, spec.against))
        if spec.training is not None and "copies" in spec.chosen:
            found.append(self._other(TRAINING, spec.training))
        return tuple(found)

    def named(self, name: str) -> WorkSet | None:
        """The set of this name."""
        return next((work for work in self.sets if work.name == name), None)

    def extractors(self, work: WorkSet) -> tuple[Extractor, ...]:
        """Those that see the pictures of a set."""
        is_scored = work.name not in {REFERENCE, TRAINING} and self.clip is not None
        return distinct([*self.distances, *([self.clip] if is_scored and self.clip else [])])

    @cached_property
    def judge(self) -> Path:
        """Where the CLIP that scores lies."""
        assert self.spec.clip is not None
        return place_of(self.spec.clip)

    def texts(self, prompts: Sequence[str]) -> tuple[str, Texts]:
        """The name of the CLIP that scores, and its features of the prompts."""
        found = read_clip(self.judge)
        tokenizer = bundled() if found.tokenizer is None else from_folder(found.tokenizer)
        return found.name, read_texts(found.build(), tokenizer, prompts, prefix=self.spec.prefix)

    def begin(self) -> None:
        """See that the output folder is new or of the same evaluation, and that nothing is missing.

        Raises: RequestError if it is of another; whatever is wrong with pictures, models or weights.
        """
        file = self.spec.out / SPEC
        work: dict[str, Any] = json.loads(json.dumps(self.spec.work()))  # Any: JSON
        found = read_json(file) if file.exists() else work
        if (
            first := next(
                (name for name in work if found.get(name, EvaluationSpec.model_fields[name].default) != work[name]),
                None,
            )
        ) is not None:
            raise RequestError(
                f"{self.spec.out} holds another evaluation ({first}: {found.get(first)!r} → {work[first]!r}); "
                "take another --out, or remove it"
            )
        if self.clip is not None:
            for work_set in self.measured:
                _ = prompts_of(work_set)
        for work_set in self.sets:
            _ = self.extractors(work_set)
        write_json(file, self.spec.settings())
        for work_set in self.sets:
            work_set.begin()

    def jobs(self) -> list[Job]:
        """What is left to do, in order; of this spec's shard."""
        first, of = self.spec.part
        every = [Job(place, chunk) for place, work in enumerate(self.sets) for chunk in range(work.chunks)]
        mine = [job for i, job in enumerate(every) if i % of == first - 1]
        return [j for j in mine if not self.sets[j.place].is_done(self.extractors(self.sets[j.place]), j.chunk)]

    def _extractor(self, word: str) -> Extractor:
        """Each network once, although it may measure and score."""
        if word not in self._loaded:
            self._loaded[word] = extractor(word, protocol=self.spec.protocol, dtype=self.spec.precision)
        return self._loaded[word]

    def _set(self, name: str, source: Source) -> WorkSet:
        return WorkSet(name=name, folder=self.spec.out / SETS / name, source=source, chunk=self.spec.chunk)

    def _other(self, name: str, where: str) -> WorkSet:
        """Pictures, or what an earlier evaluation has of them."""
        folder = stored(Path(where))
        if folder is None:
            return self._set(name, self._given((where,), None, None))
        source = StoredPictures(folder)
        return WorkSet(name=name, folder=folder, source=source, chunk=source.chunk)

    def _given(self, where: Sequence[str], limit: int | None, prompts: PromptSet | None) -> GivenPictures:
        return GivenPictures(where, limit, None if prompts is None else prompts.prompts)

    def _made(self, name: str, guidance: float | None, steps: int | None) -> MadePictures:
        spec, prompts = self.spec, self.prompt_set
        assert prompts is not None
        fields = {
            "guidance": guidance, "steps": steps, "sampler": spec.sampler, "spacing": spec.spacing,
            "negative": spec.negative, "width": spec.width, "height": spec.height,
        }  # fmt: skip
        return MadePictures(
            lambda: self.system, fields, prompts.prompts, per_prompt=spec.per_prompt, seed=spec.seed,
            folder=spec.out / SETS / name / "pictures", model=self.identity,
        )  # fmt: skip

    @cached_property
    def identity(self) -> Mapping[str, Any]:  # Any: JSON
        """The model by name and hashes, and what besides decides its bits."""
        parts = {role: str(entry["sha256"]) for role, entry in self.system.identity().items()}
        execution = {**self.system.execution(), "threads": self.spec.threads}
        return {"name": self.system.name, "sha256": parts, "execution": execution}


def prompts_of(work: WorkSet) -> Sequence[str]:
    """What the pictures of a set should show. Raises: RequestError if nobody says."""
    found = work.source.prompts
    if found is None:
        raise RequestError(
            f"{work.name}: CLIP score needs what each picture should show: --prompts FILE with one line for each, in "
            "the order of their names, a .txt beside each, or pictures made by mezzotint"
        )
    return found


def distinct(extractors: Sequence[Extractor]) -> tuple[Extractor, ...]:
    """Without those that give the features of an earlier one."""
    return tuple({key_of(one): one for one in reversed(extractors)}.values())[::-1]


@contextmanager
def threads(count: int) -> Generator[None]:
    """Within it, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _named(guidance: float | None, steps: int | None) -> list[str]:
    return [f"{letter}{value:g}" for letter, value in (("g", guidance), ("s", steps)) if value is not None]
