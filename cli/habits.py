"""How answers are drawn, as the command line says it."""

from __future__ import annotations

from dataclasses import dataclass

from ..node.client import Options
from ..node.compute.sampling import Settings
from ..node.pacing import check_codec


@dataclass(frozen=True, slots=True)
class Habits:
    """The options of `Swarm.generation` that do not change from one answer to the next.

    audit: None: as the config file says. adapter: None: the model as it is. draft: auto, off, or a
    small model. wire: how hidden states are sent. share_prefix: what is said may be kept by
    servers, for anybody who says the same.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    wait_s: float = 0.0
    audit: bool | None = None
    adapter: str | None = None
    draft: str = "auto"
    wire: str = "f32"
    share_prefix: bool = False

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is asked."""
        check_codec(self.wire)
        seed = self.seed or 0  # one that is not given is drawn later
        Settings(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, seed
        )

    def options(self) -> Options:
        options: Options = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "wait_s": self.wait_s,
            "draft": self.draft,
            "wire": self.wire,
            "prefix": "shared" if self.share_prefix else "off",
        }
        if self.audit is not None:
            options["audit"] = "on" if self.audit else "off"
        if self.adapter is not None:
            options["adapter"] = self.adapter
        return options
