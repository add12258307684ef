"""The config: layers, errors, explanations, recipes and flags."""

from __future__ import annotations

import dataclasses
import pickle
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aios.core.config import keys, yaml_text
from aios.core.config.defaults import read_defaults
from aios.core.config.explanation import explain
from aios.core.config.feature_flags import ENABLE_SEAL_SELF_EDITS, FLAGS, is_enabled
from aios.core.config.loader import LoadedConfig, dump, json_schema, load_config
from aios.core.config.recipe_schemas import Recipe
from aios.core.config.recipes import recipe_name, resolve_recipe
from aios.core.config.schemas import Config
from aios.core.errors import ConfigError

DEFAULT_YAML = Path(__file__).resolve().parents[2] / "config" / "default.yaml"


def load(
    *overrides: str,
    env: dict[str, str] | None = None,
    config_file: Path | None = None,
    user_file: Path | None = None,
) -> LoadedConfig:
    return load_config(
        overrides=overrides, env=env or {}, config_file=config_file, user_file=user_file
    )


def problems(*overrides: str, env: dict[str, str] | None = None, **files: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, env=env, **files)
    assert caught.value.exit_code == 2
    return caught.value.message


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


# --- the packaged defaults


def flat(tree: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for name, value in tree.items():
        found |= flat(value, (*path, name)) if isinstance(value, dict) else {(*path, name): value}
    return found


def test_default_yaml_holds_every_key_with_the_schema_default() -> None:
    assert flat(read_defaults().value) == flat(Config().model_dump(mode="json"))


def test_default_yaml_names_the_source_of_every_default() -> None:
    document = read_defaults()
    known = re.compile(r"(plan|SEAL paper|SEAL release|measured: |our choice: )")
    for path in flat(document.value):
        assert known.match(document.comments[path]), path


def test_default_yaml_says_above_each_key_what_the_schema_says() -> None:
    lines = DEFAULT_YAML.read_text(encoding="utf-8").splitlines()
    for path, number in read_defaults().lines.items():
        key = keys.find(path)
        assert key is not None
        if key.section or path[0] == "recipes":
            continue
        above: list[str] = []
        for line in reversed(lines[: number - 1]):
            if not line.strip().startswith("#"):
                break
            above.insert(0, line.strip().lstrip("# "))
        assert " ".join(above) == f"{key.description} ({key.allowed}).", path


def test_every_key_has_a_description_and_a_range() -> None:
    for key in keys.every_key():
        assert key.description, key
        assert key.allowed, key


def test_without_any_layer_the_defaults_are_loaded() -> None:
    loaded = load()
    assert loaded.config == Config()
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.notes == ()


def test_damaged_defaults_ask_to_install_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = yaml_text.Document(None, mistakes=(yaml_text.Mistake((), 0, "cannot be read"),))
    monkeypatch.setattr(yaml_text, "read_file", lambda path: bad)
    monkeypatch.setattr(yaml_text, "read_text", lambda text: bad)
    with pytest.raises(ConfigError, match=r"default.yaml: cannot be read\nInstall"):
        read_defaults.__wrapped__()


def test_packaged_defaults_are_read_where_the_package_holds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "_config").mkdir()
    write(tmp_path / "_config" / "default.yaml", "seed: 5\n")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert read_defaults.__wrapped__().value == {"seed": 5}


# --- layers


def test_a_stronger_layer_wins_and_is_named_as_the_source(tmp_path: Path) -> None:
    user = write(tmp_path / "user.yaml", "seal:\n  batch_size: 1\n  top_p: 0.1\nseed: 1\n")
    file = write(tmp_path / "c.yaml", "seal: {batch_size: 2, top_p: 0.2, max_retries: 2}\n")
    env = {"AIOS_SEAL__BATCH_SIZE": "3", "AIOS_SEAL__TOP_P": "0.3"}
    loaded = load(
        "seal.batch_size=9", "seal.batch_size=4", env=env, user_file=user, config_file=file
    )
    seal = loaded.config.seal
    assert (loaded.config.seed, seal.max_retries, seal.top_p, seal.batch_size) == (1, 2, 0.3, 4)
    assert loaded.sources["seed"] == f"{user}:4"
    assert loaded.sources["seal.max_retries"] == f"{file}:1"
    assert loaded.sources["seal.top_p"] == "environment variable AIOS_SEAL__TOP_P"
    assert loaded.sources["seal.batch_size"] == "--set"
    assert loaded.sources["seal.temperature"] == "default"


def test_a_missing_user_file_is_skipped_and_a_missing_config_file_is_not(tmp_path: Path) -> None:
    missing = tmp_path / "no.yaml"
    assert load(user_file=missing).config == Config()
    assert f"{missing}: cannot be read: No such file" in problems(config_file=missing)


def test_a_user_file_that_cannot_be_looked_at_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in problems(user_file=Path("/u.yaml"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "seal:\n", "---\n"])
def test_files_and_sections_with_nothing_in_them_change_nothing(tmp_path: Path, text: str) -> None:
    assert load(config_file=write(tmp_path / "c.yaml", text)).config == Config()


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("training.learning_rate=1e-3", "training", "learning_rate", 0.001),
        ("training.learning_rate=5E-4", "training", "learning_rate", 0.0005),
        ("training.epochs=3", "training", "epochs", 3),
        ("training.rank=auto", "training", "rank", None),
        ("seal.num_edits_per_passage=auto", "seal", "num_edits_per_passage", None),
        ("seal.num_edits_per_passage=null", "seal", "num_edits_per_passage", None),
        ("seal.enabled=0", "seal", "enabled", False),
        ("seal.enabled=off", "seal", "enabled", False),
        ("seal.temperature=1", "seal", "temperature", 1.0),
        ("seal.domain=C# 12: the language", "seal", "domain", "C# 12: the language"),
        ("seal.domain=", "seal", "domain", ""),
        ("seal.domain=1234", "seal", "domain", "1234"),
        ("seal.domain='a b'", "seal", "domain", "a b"),
        ('seal.domain="\\ud83d\\ude00 x"', "seal", "domain", "😀 x"),
        ('seal.domain="a" and b', "seal", "domain", '"a" and b'),
        ("seal.prompts_file=", "seal", "prompts_file", None),
        ("seal.prompts_file=p.yaml", "seal", "prompts_file", Path("p.yaml")),
        ("model.device=cuda:1", "model", "device", "cuda:1"),
        ("seal={top_p: 0.5}", "seal", "top_p", 0.5),
        ("ab_test.arms=base, passage", "ab_test", "arms", ("base", "passage")),
        ("ab_test.arms=[in-context]", "ab_test", "arms", ("in-context",)),
        (
            "evaluation.question_template=Q: {question} A:",
            "evaluation",
            "question_template",
            "Q: {question} A:",
        ),
    ],
)
def test_override_values_are_read_as_people_mean_them(
    override: str, section: str, key: str, expected: object
) -> None:
    value = getattr(getattr(load(override).config, section), key)
    assert value == expected
    assert type(value) is type(expected) or isinstance(expected, Path)


def test_home_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load("paths.artifacts=~/a").config.paths.artifacts == tmp_path / "a"


def test_a_home_that_is_not_known_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "expanduser", fail)
    assert "paths.artifacts" in problems("paths.artifacts=~/a")


def test_foreign_and_empty_environment_variables_are_left_alone() -> None:
    env = {"AIOS_HOME": "x", "PATH": "y", "AIOS_SEAL__STRATEGY": "", "SEAL__STRATEGY": "z"}
    assert load(env=env).config == Config()


def test_environment_sets_root_keys_and_reports_wrong_ones() -> None:
    assert load(env={"AIOS_SEED": "7"}).config.seed == 7
    assert "did you mean seal.strategy?" in problems(env={"AIOS_SEAL__STRATEGI": "rewrite"})
    assert "write AIOS_SEAL__STRATEGY" in problems(env={"AIOS_SEAL_STRATEGY": "rewrite"})
    assert 'model = "x" (environment variable AIOS_MODEL): is a section' in problems(
        env={"AIOS_MODEL": "x"}
    )


# --- offline


@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"AIOS_OFFLINE": "TRUE"}])
def test_offline_in_the_environment_turns_the_network_off(
    env: dict[str, str], tmp_path: Path
) -> None:
    file = write(tmp_path / "c.yaml", "model: {offline: false}\n")
    loaded = load(env={**env, "AIOS_MODEL__OFFLINE": "0"}, config_file=file)
    assert loaded.config.model.offline is True
    assert loaded.sources["model.offline"] == f"environment variable {next(iter(env))}"


def test_offline_in_the_environment_cannot_be_overridden() -> None:
    message = problems("model.offline=false", env={"HF_HUB_OFFLINE": "1"})
    assert "model.offline = false (--set): HF_HUB_OFFLINE is set" in message
    assert (
        load("model.offline=true", env={"HF_HUB_OFFLINE": "1"}).sources["model.offline"] == "--set"
    )


def test_offline_that_is_no_switch_is_refused() -> None:
    assert "AIOS_OFFLINE = ture: must be 1 or 0" in problems(env={"AIOS_OFFLINE": "ture"})
    assert load(env={"AIOS_OFFLINE": "0", "HF_HUB_OFFLINE": "0"}).config.model.offline is False


# --- errors


def test_all_errors_are_reported_together_with_value_range_and_source(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.yaml",
        """\
        seal:
          temperature: 9
          strategi: rewrite
        training: {rank: "32", epochs: 1.0}
        data: 5
        ab_test:
          arms: [base, wrong]
        """,
    )
    message = problems("seed", "model.threads=0", env={"AIOS_SEAL__TOP_P": "7"}, config_file=file)
    lines = message.splitlines()
    assert lines[0] == "9 config errors:"
    assert sorted(line.strip() for line in lines[1:]) == sorted(
        [
            f"seal.temperature = 9 ({file}:2): must be number from 0.1 to 2.0",
            f"seal.strategi ({file}:3): no such key; did you mean seal.strategy?",
            f'training.rank = "32" ({file}:4): must be integer from 1 to 1024 or null',
            f"training.epochs = 1.0 ({file}:4): must be integer from 1 to 1000 or null",
            f"data = 5 ({file}:5): is a section; give a key below it, such as "
            "data.max_passage_tokens",
            f'ab_test.arms = ["base", "wrong"] ({file}:7): must be list of base, passage, '
            "passage+edits, passage+other-edits, in-context",
            "seal.top_p = 7 (environment variable AIOS_SEAL__TOP_P): must be number above 0 "
            "up to 1",
            "--set seed: write KEY=VALUE, such as seal.strategy=rewrite",
            "model.threads = 0 (--set): must be integer from 1 to 1024 or null",
        ]
    )


def test_a_value_that_a_stronger_layer_replaces_is_not_checked(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "seed: -1\n")
    assert load("seed=1", config_file=file).config.seed == 1


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seal.temprature=1", "did you mean seal.temperature?"),
        ("sael.strategy=x", "did you mean seal.strategy?"),
        ("strategy=x", "did you mean seal.strategy or adaptation.strategy?"),
        ("offline=true", "did you mean model.offline?"),
        ("training.lr=1", "did you mean training.learning_rate?"),
        ("foo.bar=1", "the sections are: seed, model, seal,"),
        ("data.zzz=1", "data has: max_passage_tokens, near_duplicate_threshold"),
        ("features.no_such=true", "features has: enable_seal_self_edits"),
        ("recipes.default.traning.rank=1", "did you mean recipes.default.training.rank?"),
        ("recipes.default.training.rnk=1", "did you mean recipes.default.training.rank?"),
        ("recipes.a.b=1", "recipes.a.b = 1 (--set): is a section"),
        ("seal.temperature.x=1", "seal.temperature"),
        ("seal.strategy.x=[", "no such key"),
        ("data.rank=1", "did you mean training.rank or adaptation.rank?"),
        ("=1", "write KEY=VALUE"),
        ("seal.batch_size=[1", "no valid YAML"),
        ("seal.enabled=2", "must be true or false"),
        ("seal.enabled=maybe", "must be true or false"),
        ("seal.temperature=.nan", "must be number from 0.1 to 2.0"),
        ("seal.max_generation_time=.inf", "must be number above 0 up to 86400"),
        ("seal.max_generation_time=1:30", "must be number"),
        ("training.batch_size=010", "must be integer from 1 to 1024"),
        ("model.name=", "must be text, not empty"),
        ("model.device=gpu", "must be auto, cpu, cuda, cuda:N or mps"),
        ("model.dtype=int8", "must be one of auto, float32, bfloat16, float16"),
        ("paths.artifacts=", "must be a path, not an empty text"),
        ("ab_test.arms=[]", "must be list of base"),
        ("ab_test.arms=5", "must be list of base"),
        ("ab_test.arms=base,base", "must name each arm once"),
        ("evaluation.question_template=Q", "must hold {question}, and no other"),
        ("evaluation.question_template={question} {x}", "must hold {question}, and no other"),
        ("evaluation.question_template={question} {", "is no template"),
        ("recipes.default.strategy=auto", "must name a strategy"),
        ("recipes.mine.strategy=rewrite", "recipes.mine.training (--set): is missing"),
        ("recipes.mine.training.rank=4", "recipes.mine.training.epochs (--set): is missing"),
        ("seal.min_length=4000", "min_length (4000) must be below max_length (2048)"),
        ("seed=99999999999999999999", "must be integer from 0 to"),
        ("seed=!!python/name:os.system", "is not allowed"),
    ],
)
def test_each_wrong_override_gets_its_own_message(override: str, part: str) -> None:
    assert part in problems(override)


@pytest.mark.parametrize("name", ["max_tokens", "generation max tokens", "generation_max_tokens"])
def test_the_plans_other_names_of_the_generation_length_are_explained(name: str) -> None:
    assert "the longest generation is seal.max_new_tokens" in problems(f"seal.{name}=512")


def test_the_plans_double_max_length_is_explained(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "seal:\n  max_length: 1024\n  max_length: 2048\n")
    message = problems(config_file=file)
    assert message.startswith(f"config: {file}:3: seal.max_length: given twice, first on line 2 (")
    assert "the longest generation is seal.max_new_tokens" in message
    assert "the longest generation is seal.max_new_tokens" in problems("seal.max_length=0")


def test_a_filter_limit_below_the_generation_length_is_noted() -> None:
    assert "seal.max_new_tokens (now 1024)" in load("seal.max_length=512").notes[0]
    assert load("seal.max_length=512", "seal.max_new_tokens=600").notes == ()
    assert load("seal.max_length=1024").notes == ()


def test_values_of_unknown_keys_are_not_repeated() -> None:
    assert "sk-12345" not in problems("api_key=sk-12345")


def test_long_values_are_cut_in_messages() -> None:
    assert len(problems("seed=" + "x" * 5000)) < 300


# --- YAML


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"seal: {a: 1", ":1: no valid YAML:"),
        (b"seed: 1\nseed: 2\n", ":2: seed: given twice, first on line 1"),
        (b"seed: &a 1\n", "anchors and aliases are not allowed"),
        (b"seed: *a\n", "anchors and aliases are not allowed"),
        (b"seed: !!python/object:os.system x\n", "seed: the tag"),
        (b"seed: !!int x\n", "'x' is not a value of type int"),
        (b"seed: !!bool x\n", "'x' is not a value of type bool"),
        (b'seal: {domain: "\\ud800"}\n', "is not a value of type str"),
        (b"seed: " + b"9" * 5000 + b"\n", "seed"),
        (b"? [1, 2]\n: 3\n", "keys must be texts"),
        (b"- 1\n- 2\n", "holds no keys"),
        (b"--- 1\n--- 2\n", "no valid YAML:"),
        (b"[" * 2_000, "nested too deeply"),
        (b"seed: \x00\n", "no valid YAML: unacceptable character"),
        (b"seed: \xff\n", "is not UTF-8 text (byte 6)"),
        (b"#" * 1_000_001, "larger than 1000 kB"),
    ],
)
def test_each_wrong_file_gets_its_own_message(tmp_path: Path, text: bytes, part: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text)
    message = problems(config_file=file)
    assert part in message
    assert str(file) in message


def test_a_folder_as_config_file_is_reported(tmp_path: Path) -> None:
    assert "cannot be read: " in problems(config_file=tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load(config_file=file).config.seed == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("-2", -2),
        ("1_000", 1000),
        ("0x1F", 31),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("~", None),
        ("yes", True),
        ("1e", "1e"),
        ("-", [None]),
    ],
)
def test_scalars_are_read_without_surprises(text: str, value: object) -> None:
    read = yaml_text.read_text(text).value
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value", ["1e-3", "010", "1:30", "2024-01-01", "yes", "null", "a: b", "\n", "", 1e-5, 1e22, "é"]
)
def test_written_values_are_read_back_the_same(value: object) -> None:
    assert yaml_text.read_text(yaml_text.write_text({"k": value})).value == {"k": value}


def test_comments_are_found_behind_a_value_or_above_its_key() -> None:
    document = yaml_text.read_text(
        "# one\n# two\na: 1\nb: 'x # y'  # behind\nc: [1, 2] # list\n# sec\nd: # here\n  e: 2"
    )
    assert document.comments == {
        ("a",): "one two",
        ("b",): "behind",
        ("c",): "list",
        ("d",): "here",
        ("d", "e"): "",
    }


# --- explain, dump, schema


def test_explain_tells_value_source_default_range_and_where_the_default_is_from() -> None:
    found = explain(load("seal.temperature=0.5"), "seal.temperature")
    assert dataclasses.asdict(found) == {
        "key": "seal.temperature",
        "value": 0.5,
        "source": "--set",
        "default": 1.0,
        "allowed": "number from 0.1 to 2.0",
        "description": "Softmax temperature of generation",
        "default_source": "plan, SEAL release",
        "children": (),
    }


def test_explain_of_a_section_explains_all_its_keys() -> None:
    found = explain(load(), "seal")
    assert [child.key for child in found.children] == [
        f"seal.{name}" for name in Config().seal.model_dump()
    ]
    assert found.value["batch_size"] == 4
    assert all(child.default_source for child in found.children)


def test_explain_knows_every_key() -> None:
    loaded = load()
    for key in keys.every_key():
        assert explain(loaded, key.dotted).key == key.dotted
    deep = explain(loaded, "recipes").children[0].children
    assert "recipes.default.training" in [child.key for child in deep]


def test_explain_reaches_recipes_whose_name_holds_dots(tmp_path: Path) -> None:
    recipe = Config().recipes["default"].model_dump()
    file = write(tmp_path / "c.yaml", yaml_text.write_text({"recipes": {"Qwen2.5-1.5B": recipe}}))
    loaded = load("recipes.Qwen2.5-1.5B.training.rank=4", config_file=file)
    assert loaded.config.recipes["Qwen2.5-1.5B"].training.rank == 4
    found = explain(loaded, "recipes.Qwen2.5-1.5B.training.rank")
    assert (found.value, found.default, found.source) == (4, None, "--set")
    assert explain(loaded, "recipes.Qwen2.5-1.5B").value["num_edits_per_passage"] == 5


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("seal.temprature", "did you mean seal.temperature?"),
        ("temperature", "did you mean seal.temperature"),
        ("recipes.no-such", "recipes has: default, smollm2-135m-instruct"),
        ("recipes.no-such.training.rank", "recipes has: default, smollm2-135m-instruct"),
        ("", "the sections are"),
    ],
)
def test_explain_of_an_unknown_key_names_close_ones(key: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explain(load(), key)
    assert part in caught.value.message


def test_a_dumped_config_loads_back_the_same(tmp_path: Path) -> None:
    config = load(
        "training.learning_rate=1e-5", "seal.domain='1e-3'", "ab_test.arms=base", "seed=3"
    ).config
    file = write(tmp_path / "c.yaml", dump(config))
    assert load(config_file=file).config == config


def test_the_json_schema_describes_every_section() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["SealConfig"]["properties"]["temperature"]["maximum"] == 2.0


def test_the_config_is_frozen_and_can_be_sent_to_other_processes() -> None:
    config = load().config
    with pytest.raises(ValidationError):
        config.seed = 1
    assert pickle.loads(pickle.dumps(config)) == config


def test_recipes_must_hold_the_default_and_features_known_flags() -> None:
    with pytest.raises(ValidationError, match="must hold a recipe named default"):
        Config(recipes={})
    with pytest.raises(ValidationError, match="unknown flags nope"):
        Config(features={"nope": True})


# --- recipes


def test_the_model_in_use_brings_its_recipe() -> None:
    found = resolve_recipe(Config(), "smollm2-135m-instruct")
    recipe = Config().recipes["smollm2-135m-instruct"]
    assert found.name == "recipes.smollm2-135m-instruct"
    assert found.measured == recipe.source
    assert found.strategy == recipe.strategy
    assert found.lora.learning_rate == recipe.training.learning_rate
    assert found.patience == recipe.training.patience
    assert found.max_tokens is None
    assert set(found.sources.values()) == {"recipe smollm2-135m-instruct"}
    assert set(found.sources) == {
        "seal.strategy",
        "seal.num_edits_per_passage",
        *(f"training.{name}" for name in type(recipe.training).model_fields),
    }


def test_an_unknown_model_gets_the_plans_defaults() -> None:
    found = resolve_recipe(Config(), "some/other-model")
    assert (found.name, found.strategy) == ("recipes.default", "implications")
    assert found.num_edits_per_passage == 5
    assert (found.lora.rank, found.lora.alpha, found.lora.learning_rate) == (32, 64, 1e-3)
    assert (found.lora.epochs, found.lora.batch_size) == (10, 1)


def test_what_the_user_sets_wins_over_the_recipe() -> None:
    config = load(
        "seal.strategy=rewrite",
        "seal.num_edits_per_passage=2",
        "training.rank=8",
        "training.max_tokens=1000",
        "training.patience=0",
    ).config
    found = resolve_recipe(config, "smollm2-135m-instruct")
    assert (found.strategy, found.num_edits_per_passage) == ("rewrite", 2)
    assert (found.lora.rank, found.max_tokens, found.patience) == (8, 1000, 0)
    users = {key for key, source in found.sources.items() if source == "user"}
    assert users == {
        "seal.strategy",
        "seal.num_edits_per_passage",
        "training.rank",
        "training.max_tokens",
        "training.patience",
    }


def test_another_strategy_without_a_number_takes_the_default_number_of_edits() -> None:
    small = Config().recipes["smollm2-135m-instruct"]
    chosen = load("seal.strategy=rewrite", "recipes.default.num_edits_per_passage=7").config
    found = resolve_recipe(chosen, "smollm2-135m-instruct")
    assert found.num_edits_per_passage == 7
    assert found.sources["seal.num_edits_per_passage"] == "recipe default"
    same = load(f"seal.strategy={small.strategy}").config
    again = resolve_recipe(same, "smollm2-135m-instruct")
    assert again.num_edits_per_passage == small.num_edits_per_passage


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("models/SmolLM2-135M-Instruct/", "smollm2-135m-instruct"),
        ("C:\\models\\smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("smollm2-360m-instruct", "default"),
        ("", "default"),
    ],
)
def test_a_recipe_is_found_by_name_hub_id_or_folder(model: str, expected: str) -> None:
    assert recipe_name(Config().recipes, model) == expected


def test_a_recipe_has_no_nulls() -> None:
    for recipe in Config().recipes.values():
        assert isinstance(recipe, Recipe)
        assert None not in flat(recipe.model_dump()).values()


# --- feature flags


def test_every_flag_says_who_owns_it_and_when_it_goes() -> None:
    for flag in FLAGS:
        assert flag.owner.startswith("aios.")
        assert flag.description
        assert flag.remove_when


def test_a_flag_has_its_default_until_the_user_says_otherwise() -> None:
    assert ENABLE_SEAL_SELF_EDITS is True
    assert is_enabled("enable_seal_self_edits", {}) is True
    features = load("features.enable_seal_self_edits=false").config.features
    assert is_enabled("enable_seal_self_edits", features) is False


def test_an_unknown_flag_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="Did you mean enable_seal_self_edits"):
        is_enabled("enable_seal_edits", {})
    with pytest.raises(ConfigError, match="The flags are: enable_seal_self_edits"):
        is_enabled("zzz", {})


@pytest.mark.parametrize(
    "given",
    ["endpoint.url=http://ada:hunter2@host/v1", "endpoint.api_key_env=sk-hunter2"],
)
def test_a_secret_that_was_typed_in_the_wrong_place_is_not_repeated(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(given)
    assert given.split("=")[0] in str(caught.value)
    assert "hunter2" not in str(caught.value)
