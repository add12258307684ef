"""Settings that were changed on a page: kept beside the artifacts, over all other layers.

Takes keys and values as a person types them; gives the resolved config with its origins. A value
is checked with the whole config before it is kept. Jobs that are started from pages run with these
settings; commands on the command line do not see them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from aios.app.composition import check_strategy
from aios.core.config import keys
from aios.core.config.loader import LoadedConfig, load_config
from aios.core.config.schemas import Config
from aios.core.errors import ConfigError, StorageError, UsageError
from aios.core.files import atomic_write_json, locked, read_json

FILE = "settings.json"
FIXED = ("paths.", "serve.")  # where the server itself works: only its command line says
_NAMES_STRATEGIES = ("seal.strategy", "seal.prompts_file")  # checked beyond the config
_MOST = 500


class PageSettings:
    """The settings of a server of pages.

    Args:
        config_file: The file that it was started with.
        overrides: ``key=value`` texts that it was started with.
        user_file: The user's own file.
        env: The environment.

    Raises:
        ConfigError: What it was started with is wrong.
    """

    def __init__(
        self,
        *,
        config_file: Path | None = None,
        overrides: tuple[str, ...] = (),
        user_file: Path | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self._config_file = config_file
        self._overrides = overrides
        self._user_file = user_file
        self._env = dict(env)
        self.started = self._load({})
        self.folder = self.started.config.paths.artifacts.absolute() / "web"
        self._seen: tuple[Mapping[str, str], LoadedConfig] | None = None

    def changed(self) -> dict[str, str]:
        """What was changed on pages: values as they were typed, by key.

        Raises:
            StorageError: The file cannot be read.
        """
        found = read_json(self.folder / FILE, default={})
        if not isinstance(found, dict):
            raise StorageError(f"{self.folder / FILE} is corrupt", "Reset all settings.")
        return {str(key): str(value) for key, value in list(found.items())[:_MOST]}

    def loaded(self) -> LoadedConfig:
        """The settings in force, with their origins.

        Raises:
            ConfigError: A kept value does not fit what the server was started with.
            StorageError: The file of changes cannot be read.
        """
        changed = self.changed()
        if self._seen is None or self._seen[0] != changed:
            try:
                self._seen = (changed, self._load(changed))
            except ConfigError as error:
                raise ConfigError(error.message, "Reset it on the page Settings.") from error
        return self._seen[1]

    def loaded_with(self, chosen: Mapping[str, str]) -> Config:
        """The settings in force with some chosen for once; nothing is kept.

        Raises:
            ConfigError: A key or value is wrong.
            StorageError: The file of changes cannot be read.
        """
        return self._load({**self.changed(), **chosen}).config if chosen else self.loaded().config

    def change(self, key: str, value: str) -> None:
        """Sets a key, if all settings are valid with it.

        Raises:
            ConfigError: There is no such key, or the value is wrong.
            UsageError: The key is the server's own, or there is no such strategy.
            StorageError: It cannot be kept.
        """
        path = keys.split(key)
        found = keys.find(path)
        if found is None or found.section or found.dotted != key:
            raise ConfigError(f"{key} is no setting", keys.advice(path) if found is None else "")
        if is_fixed(key):
            raise UsageError(f"{key} cannot be changed here", "Start the server with another one.")
        with locked(self.folder / ".lock"):
            wanted = {**self.changed(), key: value}
            config = self._load(wanted).config
            if key in _NAMES_STRATEGIES:
                check_strategy(config)
            atomic_write_json(self.folder / FILE, wanted)

    def reset(self, key: str | None = None) -> None:
        """Takes back what was changed of one key, or of all.

        Raises:
            StorageError: It cannot be written.
        """
        with locked(self.folder / ".lock"):
            left = {} if key is None else {k: v for k, v in self.changed().items() if k != key}
            atomic_write_json(self.folder / FILE, left)

    def _load(self, changed: Mapping[str, str]) -> LoadedConfig:
        return load_config(
            config_file=self._config_file,
            overrides=self._overrides,
            env=self._env,
            user_file=self._user_file,
            changes=changed,
        )


def is_fixed(key: str) -> bool:
    """Whether a key is the server's own, which pages cannot change."""
    return key.startswith(FIXED)
