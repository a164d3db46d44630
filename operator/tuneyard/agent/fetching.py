"""From a plan's entry to files that an engine may read: find, copy, hash, check everything, then give it its name.

Blocking; the agent calls it in a thread. Rules:
- what is checked is the copy, which nobody else can write, not the volume, which others can;
- the copy holds the two files that an engine needs and nothing else: no pickle ever lies where an engine looks;
- other bytes than the pinned ones are told first; whatever else is wrong with them is nobody's interest;
- headers of strangers become many objects in memory: those of one adapter at a time.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tuneyard.agent.basefiles import gguf_base_of
from tuneyard.agent.obtaining import Ends, Obtainer, Told, never
from tuneyard.api.digests import PICKLES
from tuneyard.api.documents import PlannedAdapter
from tuneyard.api.names import engine_adapter_name
from tuneyard.api.reasons import Reason
from tuneyard.planning import vocabulary
from tuneyard.planning.adapterchecks import WEIGHTS, multiplied, violations
from tuneyard.planning.adapterconfig import CONFIG, names_another_base, read_config
from tuneyard.planning.agentstate import Prepared
from tuneyard.planning.basefacts import BaseFacts, base_facts
from tuneyard.planning.gguf import GgufBase
from tuneyard.planning.remedies import clipped
from tuneyard.planning.vocabulary import added_tokens
from tuneyard.systems.artifacts.basefiles import MOST_CONFIG, base_config, base_tensors, read_json, weights_in
from tuneyard.systems.artifacts.copying import MOST_FILES, copy_checked, writing
from tuneyard.systems.artifacts.folder import (
    ArtifactError,
    FolderDigest,
    find_folder,
    list_files,
    opened,
)
from tuneyard.systems.artifacts.gguf import write_lora
from tuneyard.systems.artifacts.safetensors import Entry, check_finite, read_header

_log = logging.getLogger(__name__)

_MOST_WEIGHTS = 16 << 30
_MOST_FOLDER = 2 * _MOST_WEIGHTS
"""Of all files, which are hashed for the digest whatever an engine needs of them."""
_FINITE, _SCAN = "finite", "2"
"""The cache's mark of adapters whose values were looked at, and by which scan."""
_MOST_MODULES, _LONGEST_MODULE = 64, 200
"""What is reported of target_modules, which may be thousands of names or one regular expression of any length."""


class FetchError(Exception):
    """An adapter cannot be used; with the reason, and the digest where its bytes were read."""

    def __init__(self, reason: Reason, message: str, digest: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.digest = digest


@dataclass(frozen=True)
class Shelf:
    """Where adapters come from, where they go, and what they must fit."""

    volumes: Path
    adapters: Path
    base: BaseFacts
    max_rank: int
    obtainer: Obtainer | None = None
    """Gets what comes over the network; None: nothing does."""
    base_repo: str | None = None
    """The repository that the base came from, where it came from one."""
    gguf: GgufBase | None = None
    """A base for llama.cpp, which reads adapters as GGUF beside what was checked."""
    _examining: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def fetch(self, planned: PlannedAdapter, told: Told = lambda _: None, ends: Ends = never) -> Prepared:
        """Make an adapter's files ready for the engine; raises FetchError, or FetchStopped when the pod leaves.

        `told` hears how far they are while they come over the network; `ends` ends that, by FetchStopped too.
        """
        if Path(planned.name).name != planned.name or planned.name.startswith("."):
            raise FetchError(Reason.INVALID_SPEC, f"{planned.name!r} is not the name of an adapter")
        digest: str | None = None
        scratch = self.adapters / f".{planned.name}"
        prepared: list[Prepared] = []

        def check(copy: Path, found: FolderDigest) -> None:
            nonlocal digest
            digest = found.digest
            if planned.digest not in (None, digest):
                raise ArtifactError(
                    Reason.DIGEST_MISMATCH,
                    f"the files' digest is {digest}, pinned is {planned.digest}: restore the files, or create a new "
                    "LoRAAdapter for the new ones",
                )
            prepared.append(self._checked(planned, copy, found, added))

        try:
            with self._found(planned, told, ends) as folder:
                added = self._look_over(folder)
                copy_checked(folder, (CONFIG, WEIGHTS), scratch, check, most=_MOST_FOLDER, going_on=self._go_on)
            self._name(scratch, self.adapters / prepared[0].engine_name)
        except ArtifactError as error:
            raise FetchError(error.reason, str(error), digest) from error
        except OSError as error:
            text = f"the adapter cannot be copied into the pod: {error.strerror or error}"
            raise FetchError(Reason.ARTIFACT_UNREADABLE, text, digest) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return prepared[0]

    def _go_on(self) -> None:
        if self.obtainer is not None:
            self.obtainer.go_on()

    @contextmanager
    def _found(self, planned: PlannedAdapter, told: Told, ends: Ends) -> Iterator[Path]:
        """The folder with an adapter's files, on a volume or in the cache; raises ArtifactError."""
        volume = planned.source.volume
        if volume is not None:
            yield find_folder(self.volumes, volume.name, volume.path)
        elif self.obtainer is None or not planned.source.is_known:
            raise ArtifactError(Reason.INVALID_SPEC, "the source is of a kind that this version's agents do not know")
        else:
            with self.obtainer.obtain(planned.source, planned.digest, told, ends) as held:
                yield held.path

    def remove(self, engine_name: str) -> None:
        """Delete an adapter's folder; it is fine if it is not there."""
        target = self.adapters / engine_name
        doomed = self.adapters / f".{engine_name}.gone"
        if target.is_dir():
            target.rename(doomed)  # at once, so that a half-deleted folder is never taken for an adapter
        shutil.rmtree(doomed, ignore_errors=True)

    def clean(self) -> frozenset[str]:
        """Delete what an interrupted fetch left behind; returns the engine names that have a folder."""
        self.adapters.mkdir(parents=True, exist_ok=True)
        found = set()
        for entry in self.adapters.iterdir():
            if entry.name.startswith("."):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.is_dir():
                found.add(entry.name)
        return frozenset(found)

    def empty(self) -> None:
        """Delete every folder: what an earlier pod has left was checked by that one, and may be another by now."""
        self.adapters.mkdir(parents=True, exist_ok=True)
        for entry in self.adapters.iterdir():
            shutil.rmtree(entry)

    def path(self, engine_name: str) -> str:
        """The folder as the engine sees it."""
        return str(self.adapters / engine_name)

    def _look_over(self, folder: Path) -> dict[str, int]:
        """What can be said without reading everything, so that a wrong path does not cost minutes.

        Returns the tokens that the adapter's own tokenizer adds; its files are not copied, engines never see them.
        """
        names = list_files(folder, MOST_FILES)
        if CONFIG not in names:
            raise ArtifactError(
                Reason.FILES_MISSING, f"{CONFIG} is missing: name the folder that PEFT's save_pretrained wrote"
            )
        if WEIGHTS not in names:
            pickles = sorted(path.name for path in folder.iterdir() if path.name.endswith(PICKLES))
            if pickles:
                raise ArtifactError(
                    Reason.NOT_SAFETENSORS,
                    f"{pickles[0]} is a pickle, which can run code when it is read: save the adapter with "
                    f"safe_serialization=True as {WEIGHTS}",
                )
            raise ArtifactError(Reason.FILES_MISSING, f"{WEIGHTS} is missing: copy the whole adapter")
        for name, most in ((CONFIG, MOST_CONFIG), (WEIGHTS, _MOST_WEIGHTS)):
            with opened(folder, name) as file:
                if file.seek(0, 2) > most:
                    raise ArtifactError(Reason.INVALID_CONFIG, f"{name} is larger than {most} bytes: no adapter's is")
        with self._examining:
            read_header(folder, WEIGHTS)
            return added_tokens({name: _beginning(folder, name) for name in vocabulary.FILES if name in names})

    def _checked(self, planned: PlannedAdapter, copy: Path, found: FolderDigest, added: Mapping[str, int]) -> Prepared:
        """The adapter in `copy`, after every check; raises ArtifactError with all that is wrong."""
        with self._examining:
            config = read_json(copy, CONFIG)
            entries = read_header(copy, WEIGHTS)
            wrong = violations(config, [entry.tensor for entry in entries], self.base, self.max_rank, added)
        if wrong:
            raise ArtifactError(wrong[0].reason, ". ".join(v.message for v in wrong))
        settings = read_config(config)
        factors = multiplied(settings, (entry.tensor for entry in entries))
        self._check_finite(planned, copy, found.digest, entries, factors)
        if self.gguf is not None:
            write_lora(copy, WEIGHTS, entries, settings, self.gguf)
        return Prepared(
            source=planned.source,
            digest=found.digest,
            engine_name=engine_adapter_name(planned.name, found.digest),
            rank=settings.highest_rank,
            target_modules=tuple(clipped(name, _LONGEST_MODULE) for name in settings.target_modules[:_MOST_MODULES]),
            size_bytes=found.size_bytes,
            warning=Reason.NAMES_ANOTHER_BASE
            if self.base_repo is not None and names_another_base(settings, self.base_repo)
            else None,
        )

    def _check_finite(
        self,
        planned: PlannedAdapter,
        copy: Path,
        digest: str,
        entries: Sequence[Entry],
        factors: Mapping[str, float],
    ) -> None:
        """Look at every value; of what lies in the cache once per digest and node."""
        store = self.obtainer.store if self.obtainer and planned.source.is_remote else None
        if store is not None and store.marked(digest, _FINITE) == _SCAN:
            return
        check_finite(copy, WEIGHTS, entries, factors)
        if store is not None:
            store.mark(digest, _FINITE, _SCAN)

    def _name(self, scratch: Path, target: Path) -> None:
        if target.exists():
            _log.info("%s lies in the pod already", target.name)  # an agent that was killed had got this far
            return
        with writing(target, 0):
            scratch.rename(target)


def read_base(folder: Path, *, custom: bool = False) -> BaseFacts:
    """The facts of the base in `folder`, from its config.json and the headers of its weights; raises ArtifactError.

    `custom`: its engine may read a format of its own, of which nothing is known.
    """
    gguf = gguf_base_of(folder)
    if gguf is not None:
        return base_facts(gguf.config, gguf.named_as_files())
    if custom and not weights_in(list_files(folder)):
        return BaseFacts(layers=0, known=False)
    return base_facts(base_config(folder), base_tensors(folder))


def _beginning(folder: Path, name: str) -> str:
    """As much of a file as is looked at."""
    with opened(folder, name) as file:
        return file.read(MOST_CONFIG).decode(errors="replace")
