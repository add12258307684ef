"""The endpoint backend keeps the contract of models, on a scripted server and on llama.cpp's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aios.backends.model_files.bundled import SMOLLM2_135M, obtain_gguf
from aios.backends.openai_compat import EndpointModel
from aios.core.config.endpoint_schema import EndpointConfig
from aios.core.errors import BackendError
from aios.core.protocols import LanguageModel, ignore
from aios.core.types import GenerationRequest, SamplingParams, ScoreRequest
from tests.contract import language_model
from tests.openai_server import LOOPBACK, MODEL_ID, OpenAIServer

pytestmark = LOOPBACK

# llama.cpp's server gives no log-probabilities of a prompt.
SCORING = {
    language_model.digest_is_hex_and_stays,
    language_model.scores_are_finite_log_probabilities,
    language_model.scores_do_not_depend_on_the_batch,
    language_model.score_depends_on_the_continuation,
    language_model.scores_between_two_outcomes_change_neither,
}


@pytest.fixture(params=["chat", "completions", "auto"])
def scripted(request: pytest.FixtureRequest) -> Iterator[EndpointModel]:
    with OpenAIServer() as server:
        settings = EndpointConfig(url=server.url, api=request.param, concurrency=4)
        model = EndpointModel.connect(MODEL_ID, settings, environ={})
        yield model
        model.close()


@pytest.mark.parametrize("check", language_model.CHECKS, ids=lambda c: c.__name__)
def test_an_endpoint_keeps_the_contract(
    check: Callable[[LanguageModel], None], scripted: EndpointModel
) -> None:
    check(scripted)


@pytest.mark.parametrize("check", language_model.CHECKS, ids=lambda c: c.__name__)
def test_an_endpoint_without_a_tokenizer_keeps_the_contract(
    check: Callable[[LanguageModel], None],
) -> None:
    with OpenAIServer(tokenizes=False) as server:
        model = EndpointModel.connect(MODEL_ID, EndpointConfig(url=server.url), environ={})
        assert not model.counts_exactly
        check(model)
        model.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of llama.cpp's own server, with the bundled model."""
    xllamacpp: Any = pytest.importorskip("xllamacpp")
    work: Path = tmp_path_factory.mktemp("gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(obtain_gguf(SMOLLM2_135M, work, offline=False, emit=ignore))
    params.n_parallel = 2
    params.n_ctx = 2 * 1024  # 1024 tokens a slot
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.warmup = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture
def remote(llama: str) -> Iterator[EndpointModel]:
    settings = EndpointConfig(url=llama, concurrency=1)
    model = EndpointModel.connect("smollm2", settings, environ={})
    yield model
    model.close()


@pytest.mark.model
@pytest.mark.parametrize(
    "check", [c for c in language_model.CHECKS if c not in SCORING], ids=lambda c: c.__name__
)
def test_a_llama_cpp_server_keeps_the_contract(
    check: Callable[[LanguageModel], None], remote: EndpointModel
) -> None:
    check(remote)


@pytest.mark.model
def test_a_llama_cpp_server_answers_chats_and_says_what_it_is(remote: EndpointModel) -> None:
    assert remote.context_length == 1024
    assert remote.counts_exactly
    prompt = remote.format_chat([{"role": "user", "content": "Say hello to Ada in one line."}])
    sampling = SamplingParams(temperature=0.7, max_new_tokens=12)
    first, second = remote.generate([GenerationRequest(prompt, (1, 2), sampling)])[0]
    for completion in (first, second):
        assert completion.text
        assert 0 < completion.tokens <= 12
        assert len(completion.line_losses) == completion.text.count("\n") + 1
        assert all(loss >= 0 for loss in completion.line_losses)


@pytest.mark.model
def test_a_llama_cpp_server_says_that_it_cannot_score(remote: EndpointModel) -> None:
    with pytest.raises(BackendError, match="the endpoint cannot score texts"):
        remote.score([ScoreRequest("The mill was built in", " 1871")])
