"""The chat page: answers as they are written, feedback, adaptation, files, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from aios.app.chat import assistant_parts
from aios.app.chat.adaptation import SessionAdapters
from aios.app.chat.assistant import Assistant, open_assistant
from aios.app.chat.choices import check_choice
from aios.app.chat.conversation import Conversation
from aios.app.experts.registry import open_store
from aios.backends.scripted import Script, ScriptedModel
from aios.backends.scripted_serving import ScriptedWriter
from aios.core.errors import UnknownExpertError, UsageError
from aios.storage.activity import FILE, ActivityStore
from aios.web.pages.chat_stream import MOST_ANSWERS
from aios.web.pages.templates import shorten
from tests.test_app.scripted_experts import add_expert
from tests.test_web.visitor import ADDRESS, Visitor

HOSTILE = "<script>alert(1)</script> </textarea> \u202e \u2028 data: x\n\ndata: y"
RUFUS = "My dog is called Rufus and was born in 2019 in Orrin. Our house has eleven doors."
LONG = "long"
SESSION = "0b6f7c1e-1111-4222-8333-444455556666"


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


class Talker(Visitor):
    """A visitor of a site whose scripted writer is in reach."""

    def __init__(self, folder: Path, *overrides: str, slow: float = 0.0) -> None:
        super().__init__(folder, *overrides)
        script: Script = {LONG: [" ".join(f"word{i}" for i in range(400))], "hostile": [HOSTILE]}
        self.writer = ScriptedWriter(ScriptedModel(script), seconds_per_token=slow)
        config = self.settings.loaded().config
        self.assistant._open = lambda: open_assistant(config, writer=self.writer)
        self.page_code = ""

    def expert(self, expert_id: str, **fields: Any) -> None:
        digest = self.writer.model.digest
        store = open_store(self.settings.loaded().config)
        add_expert(store, expert_id, base_digest=digest, **fields)

    def send(self, body: Any, *, status: int = 200, **headers: str | bytes) -> Any:
        """Posts a conversation; gives the events, or the refusal."""
        self.page_code = self.page_code or self.code()
        sent = {"Origin": ADDRESS, "X-Code": self.page_code, "Content-Type": "application/json"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {**sent, **headers}
        both = {k.encode(): v if isinstance(v, bytes) else v.encode() for k, v in given.items()}
        answer = self.client.post("/chat/answer", content=data, headers=[*both.items()])
        assert answer.status_code == status, (answer.status_code, answer.text[:2000])
        if status != 200:
            return answer.json()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [part for part in answer.text.split("\n\n") if part.startswith("data: ")]
        return [json.loads(line[6:]) for line in lines]

    def ask(self, text: str, **settings: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
        """What is said of an answer, the answer, and how it ended."""
        events = self.send({"messages": said(text), **settings})
        begun = next(event for event in events if event["kind"] == "begun")
        pieces = [event["text"] for event in events if event["kind"] == "piece"]
        assert events[-1]["kind"] == "done"
        return begun, "".join(pieces), events[-1]

    def state(self, session: str = SESSION, seen: str = "") -> dict[str, Any]:
        answer = self.client.get(f"/chat/state?session={session}&seen={seen}")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert isinstance(found, dict)
        return found

    def do(self, path: str, files: Any = None, **fields: str) -> dict[str, Any]:
        """Presses a button as the script does."""
        self.page_code = self.page_code or self.code()
        headers = {"Origin": ADDRESS, "X-Code": self.page_code, "Accept": "application/json"}
        answer = self.client.post(path, data=fields, files=files, headers=headers)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert isinstance(found, dict)
        return found

    def activity(self) -> ActivityStore:
        """What was recorded; ends the assistant."""
        self.assistant.close()
        return ActivityStore(self.artifacts / "experts" / FILE)

    def close(self) -> None:
        super().close()
        self.writer.close()


@pytest.fixture
def talker(tmp_path: Path) -> Any:
    made = Talker(tmp_path, "adaptation.every=1", "adaptation.strategy=cloze")
    yield made
    made.close()


# ---------------------------------------------------------------------- the page


def test_the_page_offers_who_can_answer_and_loads_no_model(talker: Talker) -> None:
    talker.expert("mills", description="knows mills <b>")
    talker.expert("gone", is_active=False)
    page = talker.look("/chat")
    assert "The chat needs JavaScript" in page
    assert '<option value="auto" selected>' in page
    assert "mills: knows mills &lt;b&gt;" in page
    assert 'value="gone"' not in page
    assert "is loaded with the first message" in page
    assert not talker.assistant.ready
    assert not talker.state()["ready"]


def test_an_expert_can_be_chosen_by_the_address(talker: Talker) -> None:
    talker.expert("mills")
    talker.expert("gone", is_active=False)
    assert '<option value="mills" selected>' in talker.look("/chat?model=mills")
    assert "expert gone is not active" in talker.look("/chat?model=gone")
    page = talker.look("/chat?model=<script>alert(1)</script>")
    assert "<script>alert(1)" not in page
    assert '<option value="auto" selected>' in page
    talker.ask("hi")
    assert '<option value="mills" selected>' in talker.look("/chat?model=mills")
    assert "expert gone is not active" in talker.look("/chat?model=gone")


def test_a_choice_is_checked_before_the_model_is_loaded(talker: Talker) -> None:
    config = talker.settings.loaded().config
    talker.expert("gone", is_active=False)
    check_choice(config, "auto")
    check_choice(config, "base")
    with pytest.raises(UsageError, match="not active"):
        check_choice(config, "gone")
    with pytest.raises(UnknownExpertError):
        check_choice(config, "nobody")


def test_the_state_tells_of_the_model_and_sends_choices_once(talker: Talker) -> None:
    first = talker.state()
    assert [choice["id"] for choice in first["choices"]] == ["auto", "base"]
    assert "choices" not in talker.state(seen=first["stamp"])
    talker.ask("hi")
    loaded = talker.state(seen=first["stamp"])
    assert loaded["status"] == "The model scripted is loaded."
    assert loaded["can_adapt"] is True
    assert "choices" in loaded  # their descriptions name the model now
    talker.expert("mills")
    later = talker.state(seen=loaded["stamp"])
    assert [choice["id"] for choice in later["choices"]] == ["auto", "base", "mills"]
    assert talker.client.get("/chat/state?session=a b").status_code == 400


# ---------------------------------------------------------------------- answers


def test_an_answer_comes_as_it_is_written(talker: Talker) -> None:
    events = talker.send({"messages": said(LONG), "seed": 3})
    assert [event["kind"] for event in events[:2]] == ["loading", "begun"]
    assert sum(event["kind"] == "piece" for event in events) > 5
    begun, text, done = talker.ask(LONG)
    assert text.startswith("word0 word1")
    assert begun["id"].startswith("chatcmpl-")
    assert begun["experts"] == []
    assert "no expert" in begun["reason"]
    assert (begun["read"], begun["left_out"], begun["cut"]) == (1, 0, 0)
    assert done["ended"] == "length"
    assert done["tokens"] == talker.settings.loaded().config.chat.max_new_tokens
    assert done["seconds"] >= done["seconds_to_first"] >= 0
    assert done["speed"] > 0


def test_who_answered_is_told_with_weights_and_why(talker: Talker) -> None:
    talker.expert("mills", goals=("mills and weirs",))
    begun, text, _ = talker.ask("hi", model="mills")
    assert text == "[mills] unknown"
    assert begun["experts"] == [{"id": "mills", "weight": 1.0}]
    assert begun["reason"] == "asked for"
    routed, _, _ = talker.ask("Tell me of mills and weirs.")
    assert routed["experts"] == [{"id": "mills", "weight": 1.0}]
    assert routed["model"] == "auto"
    assert routed["reason"]
    assert talker.ask("Tell me of mills and weirs.", model="base")[0]["experts"] == []


def test_settings_of_an_answer_are_followed(talker: Talker) -> None:
    _, text, done = talker.ask(LONG, max_tokens=3, temperature=0, top_p=0.5)
    assert (text.split(), done["ended"]) == (["word0", "word1", "word2"], "length")
    sampling = talker.writer.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0, 0.5, 3)
    first, again, later = (talker.ask("hi", seed=5, drawn=drawn)[0] for drawn in (0, 0, 1))
    assert first["seed"] == again["seed"] != later["seed"]
    events = talker.send(
        {"messages": [{"role": "system", "content": "Be brief."}, *said("one", "two", "three")]}
    )
    assert events[-1]["kind"] == "done"
    assert talker.writer.requests[-1].prompt == "Be brief.\n\none\n\ntwo\n\nthree"


def test_text_of_a_model_stays_text(talker: Talker) -> None:
    begun, text, _ = talker.ask("hostile", session=SESSION)
    assert text == HOSTILE
    assert begun["model"] == "auto"


def test_a_conversation_goes_on_after_the_server_was_started_again(tmp_path: Path) -> None:
    first = Talker(tmp_path)
    first.ask("one", session=SESSION)
    first.close()
    second = Talker(tmp_path)
    events = second.send({"messages": said("one", "unknown", "two"), "session": SESSION})
    assert events[-1]["kind"] == "done"
    assert second.writer.requests[-1].prompt == "one\n\nunknown\n\ntwo"
    second.close()


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"{", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        ([], "a JSON object"),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": said("hi") * 5000}, "messages: has more than 4096"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "no valid Unicode"),
        ({"messages": said("hi"), "temperature": 3}, "temperature"),
        ({"messages": said("hi"), "temperature": "1"}, "temperature"),
        ({"messages": said("hi"), "top_p": 0}, "top_p"),
        ({"messages": said("hi"), "max_tokens": 0}, "max_tokens"),
        ({"messages": said("hi"), "max_tokens": 100_000}, "at most, not 100,000"),
        ({"messages": said("hi"), "model": "x" * 300}, "model"),
        ({"messages": said("hi"), "session": "a b"}, "session"),
        ({"messages": said("hi"), "seed": 2**70}, "seed"),
        ({"messages": said("hi"), "tta": 1}, "tta"),
        ({"messages": said("hi"), "other": 1}, "other"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused_in_words(
    talker: Talker, body: Any, part: str
) -> None:
    assert part in talker.send(body, status=400)["text"]
    assert not talker.assistant.ready


def test_a_message_that_is_too_long_is_refused(talker: Talker) -> None:
    found = talker.send({"messages": said("x" * 1_100_000)}, status=413)
    assert "larger than the 1,048,576 bytes allowed" in found["error"]["message"]


def test_what_comes_without_the_page_is_refused(talker: Talker) -> None:
    body = {"messages": said("hi")}
    for code in ("", "wrong", "Größe".encode()):
        refused = talker.send(body, status=403, **{"X-Code": code})
        assert "older than the server" in refused["text"]
    assert "as JSON" in talker.send(body, status=400, **{"Content-Type": "text/plain"})["text"]
    headers = {"Origin": "http://evil.example", "X-Code": talker.page_code}
    answer = talker.client.post("/chat/answer", json=body, headers=headers)
    assert answer.status_code == 403
    assert talker.writer.requests == []


def test_errors_of_an_answer_are_told_in_its_stream(talker: Talker) -> None:
    talker.expert("mills")
    unknown = talker.send({"messages": said("hi"), "model": "milles"})[-1]
    assert unknown["kind"] == "failed"
    assert "milles" in unknown["text"]
    assert "mills" in unknown["remedy"]
    assert talker.send({"messages": [{"role": "system", "content": "x"}]})[-1]["kind"] == "failed"
    talker.writer.full = True
    assert "too many texts wait" in talker.send({"messages": said("hi")})[-1]["text"]
    talker.writer.full = False
    talker.writer.batch.fail_after = 2
    kinds = [event["kind"] for event in talker.send({"messages": said(LONG)})]
    assert kinds[0] == "begun"
    assert kinds[-2:] == ["piece", "failed"]


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again(talker: Talker) -> None:
    working = talker.assistant._open

    def broken() -> Assistant:
        raise UsageError("the weights are gone", "fetch them")

    talker.assistant._open = broken
    assert talker.send({"messages": said("hi")}) == [
        {"kind": "loading"},
        {"kind": "failed", "text": "the weights are gone", "remedy": "fetch them"},
    ]
    talker.assistant._open = working
    assert talker.ask("hi")[1] == "unknown"


def test_answers_end_when_the_server_stops(tmp_path: Path) -> None:
    talker = Talker(tmp_path, slow=0.05)
    talker.page_code = talker.code()
    talker.assistant.get()
    timer = threading.Timer(0.4, talker.site.closing.set)
    timer.start()
    events = talker.send({"messages": said(LONG)})
    assert events[-1] == {
        "kind": "failed",
        "text": "The server is stopping.",
        "remedy": "Send the message again when it is back.",
    }
    assert 1 < len(events) < 100
    assert "stopping" in talker.send({"messages": said(LONG)}, status=503)["text"]
    talker.close()


class Reader:
    """Somebody who reads a stream, and leaves after so many pieces of it."""

    def __init__(self, talker: Talker, leave_after: int) -> None:
        self.code = talker.code()
        self.cookie = "; ".join(f"{c.name}={c.value}" for c in talker.client.cookies.jar)
        self.app = talker.client.app
        self.leave_after = leave_after
        self.left = asyncio.Event()
        self.status = 0
        self.parts = 0

    async def read(self, body: Any) -> None:
        data = json.dumps(body).encode()
        sent = False
        headers = {
            "host": "localhost",
            "content-type": "application/json",
            "content-length": str(len(data)),
            "cookie": self.cookie,
            "x-code": self.code,
        }

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": data, "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.status = message.get("status", self.status)
            if message["type"] == "http.response.body":
                self.parts += 1
            if self.parts >= self.leave_after:
                self.left.set()

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/chat/answer",
            "raw_path": b"/chat/answer",
            "query_string": b"",
            "scheme": "http",
            "http_version": "1.1",
            "server": ("localhost", 80),
            "client": ("127.0.0.1", 1),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        await self.app(scope, receive, send)  # type: ignore[arg-type]


def _idle(talker: Talker) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        load = talker.assistant.get().load()
        if not load.writing and not load.waiting:
            return True
        time.sleep(0.01)
    return False


def test_an_answer_is_cancelled_when_its_reader_leaves(tmp_path: Path) -> None:
    talker = Talker(tmp_path, slow=0.02)
    talker.assistant.get()
    reader = Reader(talker, 4)
    asyncio.run(reader.read({"messages": said(LONG), "max_tokens": 400}))
    assert reader.status == 200
    assert 4 <= reader.parts < 50
    assert _idle(talker)
    with talker.activity() as activity:
        (answer,) = activity.answers()
    assert answer.finish_reason == "cancelled"
    talker.close()


def test_only_a_few_answers_are_written_at_once(tmp_path: Path) -> None:
    talker = Talker(tmp_path, slow=0.05)
    talker.assistant.get()
    readers = [Reader(talker, 1000) for _ in range(3 * MOST_ANSWERS)]

    async def all_at_once() -> None:
        body = {"messages": said(LONG), "max_tokens": 8}
        await asyncio.gather(*(reader.read(body) for reader in readers))

    asyncio.run(all_at_once())
    statuses = [reader.status for reader in readers]
    assert statuses.count(200) == 2 * MOST_ANSWERS
    assert statuses.count(429) == MOST_ANSWERS
    talker.close()


# ---------------------------------------------------------------------- feedback


def test_feedback_is_kept_with_what_it_is_about(talker: Talker) -> None:
    begun, _, _ = talker.ask("In which year?", session=SESSION)
    assert talker.do("/chat/feedback", id=begun["id"], rating="up")["tone"] == "good"
    found = talker.do(
        "/chat/feedback", id=begun["id"], correction="In <b>1821</b>.", comment="close"
    )
    assert found["tone"] == "good"
    for fields in ({"rating": "up", "id": "nothing"}, {"id": begun["id"]}, {"rating": "7"}):
        assert talker.do("/chat/feedback", **fields)["tone"] == "bad"
    with talker.activity() as activity:
        correction, rating = activity.feedback()
        assert rating.rating == 1.0
        assert (correction.correction, correction.comment) == ("In <b>1821</b>.", "close")
        assert correction.message == "In which year?"
        (session,) = activity.sessions()
        assert session.id == SESSION


def test_a_bad_answer_is_rated_down(talker: Talker) -> None:
    begun, _, _ = talker.ask("hi")
    talker.do("/chat/feedback", id=begun["id"], rating="down")
    with talker.activity() as activity:
        assert activity.feedback()[0].rating == -1.0


# ---------------------------------------------------------------------- adaptation


def _adapters(talker: Talker) -> SessionAdapters:
    found = talker.assistant.get()._adapters
    assert found is not None
    return found


def _learn(talker: Talker, text: str = RUFUS) -> None:
    talker.ask(text, session=SESSION, tta=True)
    assert _adapters(talker).wait(10)


def test_what_was_learned_is_shown_and_can_be_taken_back(talker: Talker) -> None:
    assert "Nothing was learned yet" in talker.state()["adaptations"]
    _learn(talker)
    found = talker.state()
    assert (found["count"], found["in_use"]) == (1, 1)
    assert "✓ in use" in found["adaptations"]
    assert "over the base model" in found["adaptations"]
    assert "loss on what was learned" in found["adaptations"]
    assert talker.ask("hi", session=SESSION, tta=True)[0]["adapted"]
    assert "taken back" in talker.do("/chat/undo", session=SESSION)["text"]
    found = talker.state()
    assert found["in_use"] == 0
    assert "taken back" in found["adaptations"]
    assert talker.do("/chat/undo", session=SESSION)["tone"] == "plain"
    assert not talker.ask("hi", session=SESSION, tta=True)[0]["adapted"]
    assert talker.state("another")["count"] == 0


def test_the_page_shows_which_statements_were_learned(talker: Talker) -> None:
    long = "The mill at Orrin was built by Anna Brandt in 1871 " + "of <b>stone</b> and oak " * 12
    _learn(talker, f"{RUFUS} How are you?\n\n{long.strip()}.")
    shown = talker.state()["adaptations"]
    assert '<span class="text">My dog is called Rufus' in shown
    assert "How are you?" not in shown
    assert "<b>stone" not in shown
    summary, full = re.findall(
        r'<summary class="text">(.*?)</summary><p class="text">(.*?)</p>', shown
    )[0]
    assert unescape(full) == f"{long.strip()}."
    assert unescape(summary) == shorten(f"{long.strip()}.")
    assert "so that it is not forgotten" not in shown
    talker.send(
        {
            "messages": said(RUFUS, "I see.", "My locker code is 4471."),
            "session": SESSION,
            "tta": True,
        }
    )
    assert _adapters(talker).wait(10)
    latest = talker.state()["adaptations"].partition("</ol>")[0]
    new, _, repeated = latest.partition("Trained on again, so that it is not forgotten:")
    assert "My locker code is 4471." in new
    assert "My dog is called Rufus" not in new
    assert "My dog is called Rufus" in repeated
    talker.do("/chat/undo", session=SESSION)
    assert "My locker code is 4471." in talker.state()["adaptations"]  # and that it is taken back
    talker.do("/chat/forget", session=SESSION)
    assert "4471" not in talker.state()["adaptations"]


def test_adaptation_is_switched_off_and_on(talker: Talker) -> None:
    assert "off" in talker.do("/chat/adapting", session=SESSION, on="0")["text"]
    talker.ask(RUFUS, session=SESSION, tta=False)
    assert talker.do("/chat/adapting", session=SESSION, on="0")["tone"] == "good"
    _learn(talker)
    assert talker.state()["count"] == 0
    assert "on" in talker.do("/chat/adapting", session=SESSION, on="1")["text"]
    _learn(talker)
    assert talker.state()["in_use"] == 1
    talker.do("/chat/adapting", session=SESSION, on="0")
    assert not talker.ask("hi", session=SESSION, tta=True)[0]["adapted"]


def test_a_model_that_cannot_be_trained_says_so(
    talker: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assistant_parts, "open_adapters", lambda *_: None)
    talker.ask("hi")
    assert talker.state()["can_adapt"] is False
    assert "cannot be trained" in talker.do("/chat/adapting", session=SESSION, on="1")["text"]
    assert 'id="cannot-adapt" class="problem">' in talker.look("/chat")


def test_a_forgotten_session_has_learned_nothing(talker: Talker) -> None:
    assert talker.do("/chat/forget", session=SESSION)["tone"] == "good"
    _learn(talker)
    assert talker.do("/chat/forget", session=SESSION)["tone"] == "good"
    assert talker.state()["count"] == 0
    assert not talker.ask("hi", session=SESSION, tta=True)[0]["adapted"]


def test_buttons_need_a_session_and_the_code(talker: Talker) -> None:
    for path in ("/chat/adapting", "/chat/undo", "/chat/forget"):
        for session in ("", "a b", "x" * 200):
            assert talker.do(path, session=session)["tone"] == "bad"
    _learn(talker)
    talker.page_code = "wrong"
    for path in ("/chat/undo", "/chat/forget", "/chat/feedback", "/chat/adapting", "/chat/save"):
        assert "Nothing was done" in talker.do(path, session=SESSION, on="0")["text"]
    assert talker.state()["in_use"] == 1


# ---------------------------------------------------------------------- files


def test_a_conversation_is_saved_and_opened_as_the_terminal_does(
    talker: Talker, tmp_path: Path
) -> None:
    spoken = said("one", HOSTILE, "two")
    saved = talker.do("/chat/save", system="Be brief.", messages=json.dumps(spoken))
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(saved), encoding="utf-8")
    terminal = Conversation()
    terminal.load(file)
    assert terminal.system == "Be brief."
    assert [message.as_json() for message in terminal.messages[1:]] == spoken
    opened = talker.do("/chat/open", files={"file": ("talk.json", file.read_bytes())})
    assert opened == {"system": "Be brief.", "messages": spoken}
    for data in (b"nonsense", b"\xff", b'{"messages": [{"role": "root", "content": "x"}]}', b"{}"):
        assert talker.do("/chat/open", files={"file": ("bad.json", data)})["tone"] == "bad"
    assert talker.do("/chat/open")["tone"] == "bad"
    assert talker.do("/chat/save", messages="[")["tone"] == "bad"
