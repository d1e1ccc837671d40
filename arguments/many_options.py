"""The options of `train_many.py`; all others that are typed are those of `train.py`, for every subject."""

from __future__ import annotations

from dataclasses import dataclass

from arguments.fields import option


@dataclass(frozen=True)
class ManyOptions:
    """Where many avatars are trained, and with what."""

    output: str = option("", "folder that gets a folder for each subject", short="-o", path=True)
    cpus: float = option(1.0, "cores for each subject; also its --threads, unless typed", above=0, at_most=4096)
    gpus: float = option(
        0.0, "GPUs for each subject; a fraction puts several on one; 0: it sees none", at_least=0, at_most=64
    )
    memory: float = option(0.0, "memory to set aside for each subject; 0: none", unit="GB", at_least=0)
    address: str | None = option(
        None, "the Ray cluster to join, as HOST:PORT, or auto; default: one on this machine alone, as long as it runs"
    )
    local: bool = option(False, "without Ray: one subject after the other")
    retries: int = option(3, "times that a subject is tried again after a crash or the loss of its machine", at_least=0)
    then: tuple[str, ...] = option(
        (), "what to do with each finished avatar: 'render', 'export html', with flags of these programs if wanted"
    )
    evaluate_only: bool = option(False, "train nothing; measure with render.py what is finished")
    quiet: bool = option(False, "print only what failed")

    def conflict(self) -> str | None:
        """What is wrong between the values, as a sentence; None when they fit together."""
        if self.local and self.address:
            return "--local does without Ray and --address joins a cluster: give one of them"
        return None
