"""The names that there are, of experts, goals, runs, strategies, models and settings.

For a shell that completes a line: it asks at each press of the key, so nothing here imports a
model library or builds the config's models. The few settings that say where to look are read
straight from their layers, in the loader's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios.core.config import yaml_text
from aios.core.config.defaults import read_defaults


@dataclass(frozen=True, slots=True)
class KnownNames:
    """Finds names.

    All methods give each name with a few words about it, which may be empty, and raise an
    `AIOSError` where a file that they need is damaged.

    Attributes:
        env: The environment.
        user_file: The user's own config file.
        config_file: The file given by ``--config``.
        overrides: The texts given by ``--set``.
    """

    env: Mapping[str, str]
    user_file: Path | None = None
    config_file: Path | None = None
    overrides: Sequence[str] = ()

    def experts(self) -> dict[str, str]:
        """Ids of the registered experts."""
        from aios.storage.experts import FileExpertStore

        listed = FileExpertStore(self._artifacts() / "experts", "").list()
        return {expert.expert_id: expert.description or expert.name for expert in listed}

    def deleted_experts(self) -> dict[str, str]:
        """Ids of the experts in the trash, the one that went last first."""
        from aios.storage.expert_trash import ExpertTrash
        from aios.storage.experts import FileExpertStore

        trash = ExpertTrash(FileExpertStore(self._artifacts() / "experts", ""))
        return {one.expert.expert_id: one.expert.name for one in trash.list()}

    def goals(self) -> dict[str, str]:
        """Ids of the goals, and what they say."""
        from aios.storage.expert_goals import GoalStore
        from aios.storage.experts import FileExpertStore

        store = FileExpertStore(self._artifacts() / "experts", "")
        return {goal.id: goal.text for goal in GoalStore(store).list()}

    def restem_runs(self) -> dict[str, str]:
        """Ids of the ReST-EM runs in the folder of runs, the newest first."""
        from aios.app.restem.folders import newest_runs

        return {path.name: "" for path in newest_runs(self._artifacts() / "runs")}

    def strategies(self) -> dict[str, str]:
        """Strategies: those built in, those of installed packages and the user's own prompts."""
        from aios.core.seal.prompts import PromptBuilder
        from aios.core.seal.strategies import known_strategies

        own = self._setting("seal", "prompts_file")
        prompts = PromptBuilder(Path(own)) if own else None
        return dict.fromkeys(known_strategies(prompts), "")

    def models(self) -> dict[str, str]:
        """Base models that have a name."""
        from aios.backends.models import known_models

        return {model.name: model.summary for model in known_models()}

    def settings(self) -> dict[str, str]:
        """Dotted keys that hold a value, in the order of the default config."""
        return dict.fromkeys(_dotted(read_defaults().value), "")

    def sections(self) -> dict[str, str]:
        """Dotted keys that hold other keys."""
        tree = read_defaults().value
        keys = (key.split(".") for key in _dotted(tree))
        return dict.fromkeys((".".join(key[:n]) for key in keys for n in range(1, len(key))), "")

    def _artifacts(self) -> Path:
        return Path(str(self._setting("paths", "artifacts")))

    def _setting(self, *path: str) -> Any:
        """A setting's value as the strongest layer has it."""
        for override in reversed(self.overrides):
            key, _, text = override.partition("=")
            if key.strip() == ".".join(path):
                return yaml_text.read_text(text).value
        if given := self.env.get("AIOS_" + "__".join(path).upper()):
            return yaml_text.read_text(given).value
        for file in (self.config_file, self.user_file):
            if file is not None and file.is_file():
                found = _at(yaml_text.read_file(file).value, path)
                if found is not None:
                    return found
        return _at(read_defaults().value, path)


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _dotted(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"
