"""``aios chat``: answers for scripts, and conversations at a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.app.chat.assistant import Assistant, open_assistant
from aios.app.chat.conversation import Conversation
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_serving import ScriptedWriter
from aios.cli.aios import run
from aios.cli.chat_loop import ChatLoop, Notes, described, show_answer
from aios.cli.chat_terminal import Harmless, Lines, Screen, harmless, history_file
from aios.core.config.schemas import Config
from aios.core.events import Notice
from aios.storage.activity import FILE, ActivityStore
from aios.storage.activity_records import AdaptationRecord
from tests.test_app.scripted_experts import add_expert, store_in

Capture = pytest.CaptureFixture[str]
TELL = "Passage: The mill stands. The bell rings. The gate shuts."  # needs many words
STOP = KeyboardInterrupt()


class Typed:
    """Somebody at the keyboard: gives lines, raises what is no line, and leaves at the end."""

    def __init__(self, lines: Iterable[str | BaseException]) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line


class Talk:
    """A conversation with the scripted model at a made-up terminal."""

    def __init__(self, folder: Path, writer: ScriptedWriter, **sections: Any) -> None:
        self.config = Config(
            **{"model": {"name": "scripted"}, "paths": {"artifacts": folder}, **sections}
        )
        self.writer = writer
        self.store = store_in(folder)
        self.notes = Notes()
        self.assistant: Assistant = open_assistant(self.config, emit=self.notes, writer=writer)
        self.conversation = Conversation(self.config.chat.system)
        self.out, self.err = io.StringIO(), io.StringIO()

    def type(
        self, *lines: str | BaseException, model: str = "base", adapt: bool = False, seed: int = 1
    ) -> str:
        """Types lines and leaves; what stdout showed."""
        before = self.out.tell()
        ChatLoop(
            self.assistant,
            self.conversation,
            Screen(out=self.out, err=self.err),
            Lines(Typed(lines)),
            self.notes,
            session="s1",
            model=model,
            adapt=adapt,
            seed=seed,
        ).run()
        return self.out.getvalue()[before:]

    @property
    def noted(self) -> str:
        return self.err.getvalue()


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    made = Talk(tmp_path / "artifacts", ScriptedWriter(ScriptedModel()))
    yield made
    made.assistant.close()
    made.writer.close()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_MODEL__NAME", "scripted")


# ------------------------------------------------------------ for scripts


@pytest.mark.usefixtures("scripted")
def test_a_message_is_answered_once(capsys: Capture, tmp_path: Path) -> None:
    assert run(["chat", "Where is the mill?"]) == 0
    assert capsys.readouterr().out == "unknown\n"
    add_expert(store_in(tmp_path / "artifacts"), "mills")
    assert run(["chat", "--expert", "mills", "--quiet", "Where is the mill?"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("[mills] unknown\n", "")


@pytest.mark.usefixtures("scripted")
def test_an_answer_as_json(capsys: Capture, tmp_path: Path) -> None:
    add_expert(store_in(tmp_path / "artifacts"), "mills")
    line = ["chat", "--expert", "mills", "--json", "--seed", "3", "--session", "s1", TELL]
    assert run(line) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["answer"].startswith("[mills] 1. ")
    assert document["answered_by"] == {
        "experts": [{"id": "mills", "weight": 1.0}],
        "reason": "asked for",
    }
    assert document["finish_reason"] == "stop"
    assert document["usage"]["completion_tokens"] > 7
    assert document["session"] == "s1"
    assert run(line) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["answer"], again["seed"]) == (document["answer"], document["seed"])
    assert again["id"] != document["id"]
    with ActivityStore(tmp_path / "artifacts" / "experts" / FILE) as activity:
        assert {r.id for r in activity.answers()} == {again["id"], document["id"]}


@pytest.mark.usefixtures("scripted")
def test_settings_reach_the_model(capsys: Capture) -> None:
    options = ["--max-new-tokens", "2", "--temperature", "0", "--system", "Question: why?"]
    assert run(["chat", *options, "--json", TELL]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["finish_reason"] == "length"
    assert len(document["answer"].split()) == 2


@pytest.mark.usefixtures("scripted")
def test_what_cannot_be_answered_is_a_usage_error(capsys: Capture, tmp_path: Path) -> None:
    add_expert(store_in(tmp_path / "artifacts"), "mills")
    assert run(["chat", "--expert", "mils", "hi"]) == 2
    assert "did you mean mills?" in capsys.readouterr().err
    assert run(["chat", "  "]) == 2
    assert "empty" in capsys.readouterr().err


def test_a_message_on_stdin_in_a_process_of_its_own(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "aios", "chat", "--set", "model.name=scripted", "--quiet"]
    done = subprocess.run(line, input=b"Where?\xff\n", capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"unknown\n", b"")
    done = subprocess.run([*line, "--json"], input=b" \n", capture_output=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "stdin is empty" in json.loads(done.stdout)["error"]["message"]


# ------------------------------------------------------------ conversations


def test_what_was_said_before_is_read_again(talk: Talk) -> None:
    assert talk.type("one", "", "two") == "unknown\nunknown\n"
    assert talk.writer.requests[-1].prompt == "one\n\nunknown\n\ntwo"
    assert [m.role for m in talk.conversation.messages] == ["system", *["user", "assistant"] * 2]
    assert "[base model · 1 tokens · " in talk.noted


def test_lines_go_on_behind_a_backslash_and_between_quotes(talk: Talk) -> None:
    talk.type("one \\", "two", '"""', "three", "/quit", "", '  """', "four")
    assert [m.content for m in talk.conversation.messages if m.role == "user"] == [
        "one \ntwo",
        "three\n/quit\n",
        "four",
    ]


def test_who_answers_can_be_changed(talk: Talk) -> None:
    add_expert(talk.store, "mills", description="Mills and weirs")
    shown = talk.type("/expert mills", "hi", "/experts", "/base", "hi", "/expert mils", "/expert")
    assert shown.splitlines()[0] == "[mills] unknown"
    assert "* mills                    Mills and weirs" in shown
    assert shown.splitlines()[-1] == "unknown"
    assert "[mills (1.00) · " in talk.noted
    assert "did you mean mills?" in talk.noted
    assert "/expert needs an ID" in talk.noted


def test_an_unknown_command_is_refused_with_close_ones(talk: Talk) -> None:
    assert talk.type("/exprt mills", "/zzzz", "/quit", "never read") == ""
    assert "there is no command /exprt" in talk.noted
    assert "did you mean /expert" in talk.noted
    assert "/help lists them" in talk.noted
    assert talk.writer.requests == []


def test_help_lists_every_command(talk: Talk) -> None:
    shown = talk.type("/help")
    listed = set(re.findall(r"^  /(\w+)", shown, re.MULTILINE))
    assert listed == set(
        "help experts expert auto base system reset retry undo adaptations tta save load rate "
        "correct tokens quit".split()
    )


def test_the_system_text_can_be_set_and_taken_away(talk: Talk) -> None:
    shown = talk.type("/system", "/system Be brief.", "one", "/system -", "two")
    assert shown.splitlines() == [
        "(no system text)",
        "Be brief.",
        "unknown",
        "(no system text)",
        "unknown",
    ]
    assert talk.writer.requests[0].prompt == "Be brief.\n\none"
    assert talk.writer.requests[1].prompt == "one\n\nunknown\n\ntwo"


def test_the_system_text_of_the_settings_can_be_taken_away(tmp_path: Path) -> None:
    talk = Talk(tmp_path, ScriptedWriter(ScriptedModel()), chat={"system": "Be brief."})
    shown = talk.type("/system", "one", "/system -", "two")
    assert shown.splitlines() == ["Be brief.", "unknown", "(no system text)", "unknown"]
    assert talk.writer.requests[0].prompt == "Be brief.\n\none"
    assert talk.writer.requests[1].prompt == "one\n\nunknown\n\ntwo"
    talk.assistant.close()
    talk.writer.close()


def test_reset_forgets_and_retry_asks_again_with_another_seed(talk: Talk) -> None:
    talk.type("/retry", "one", "/retry")
    assert "nothing was asked yet" in talk.noted
    first, second = talk.writer.requests
    assert first.prompt == second.prompt == "one"
    assert first.seed != second.seed
    assert talk.conversation.turns == 1
    talk.type("/reset", "two")
    assert talk.writer.requests[-1].prompt == "two"


def test_a_seed_gives_the_same_conversation_again(talk: Talk) -> None:
    talk.type("one", "two", seed=5)
    talk.type("/reset", "one", "two", seed=5)
    seeds = [request.seed for request in talk.writer.requests]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] != seeds[1]


def test_an_answer_that_fails_leaves_the_conversation_as_it_was(talk: Talk) -> None:
    talk.type("one")
    before = talk.conversation.messages
    talk.writer.full = True
    talk.type("two", "/retry")
    assert talk.conversation.messages == before
    assert talk.noted.count("error: the script says that too many texts wait") == 2
    talk.writer.full = False
    talk.writer.batch.fail_after = 0
    talk.type("two", "/retry")
    assert talk.conversation.messages == before


def test_a_conversation_is_saved_and_loaded(talk: Talk, tmp_path: Path) -> None:
    talk.type("/system Be brief.", "one", "/save talk.json", "/reset", "/system -")
    assert "saved as talk.json" in talk.noted
    talk.type("/load talk.json", "two")
    assert talk.writer.requests[-1].prompt == "Be brief.\n\none\n\nunknown\n\ntwo"
    Path("bad.json").write_text('[{"role": "root", "content": "x"}]')
    talk.type("/load bad.json", "/load", "/save", "/load gone.json", "three")
    assert "bad.json is no conversation" in talk.noted
    assert "/load needs a FILE" in talk.noted
    assert talk.conversation.turns == 3


def test_feedback_is_kept(talk: Talk, tmp_path: Path) -> None:
    talk.type("/rate up", "one", "/rate", "/rate down too short", "/correct", "/correct The weir.")
    for part in ("nothing was answered yet", "/rate needs up or down", "/correct needs"):
        assert part in talk.noted
    talk.assistant.close()
    with ActivityStore(tmp_path / "artifacts" / "experts" / FILE) as activity:
        correction, rating = activity.feedback()
    assert (rating.rating, rating.comment) == (-1.0, "too short")
    assert (correction.correction, correction.message) == ("The weir.", "one")


def test_tokens_are_counted(talk: Talk) -> None:
    shown = talk.type("/tokens", "one", "two", "/tokens").splitlines()
    assert shown[0] == "0 turns; 0 tokens written since the start"
    assert shown[-2:] == [
        "the last answer read 3 tokens",
        "2 turns; 2 tokens written since the start",
    ]


def test_notes_are_shown_between_turns(talk: Talk) -> None:
    talk.notes(Notice("adapted: loss 2.31 → 2.10"))
    talk.type("one")
    assert talk.noted.startswith("note: adapted: loss 2.31 → 2.10\n")


def test_a_session_adapts_and_can_be_taken_back(tmp_path: Path) -> None:
    made = Talk(tmp_path, ScriptedWriter(ScriptedModel()), adaptation={"every": 1})
    facts = "My dog is called Rufus and was born in 2019 in Orrin. Our house has eleven doors."
    made.type("/undo", "/adaptations", facts, adapt=True)
    adapters = made.assistant._adapters
    assert adapters is not None
    assert adapters.wait(10)
    shown = made.type("/adaptations", "/undo", "/tta off", "/tta", "/tta on", adapt=True)
    assert "  learned: My dog is called Rufus" in shown
    assert re.search(r"^(adapted|dropped) over base model: loss \d", shown, re.MULTILINE)
    assert re.search(r"^(adapted|dropped) over base model: loss \d", made.noted, re.MULTILINE)
    assert "there is none to undo" in made.noted
    assert "adaptation is off" in made.noted
    assert "/tta needs on or off" in made.noted
    made.assistant.close()
    made.writer.close()


def test_an_adaptation_is_described_in_a_line() -> None:
    record = AdaptationRecord(
        "s1", "mills", 0.0, 1.0, 2.31, 2.1, 3.0, 3.01, None, None, False, "harm \x1b[2J"
    )
    assert described(record) == (
        "dropped over mills: loss 2.310 → 2.100, unrelated text 3.000 → 3.010 (harm )"
    )


# ------------------------------------------------------------ Ctrl-C


def test_ctrl_c_at_the_prompt_ends_it_when_it_comes_twice(talk: Talk) -> None:
    talk.type(STOP, "one", STOP, STOP, "never read")
    assert talk.conversation.turns == 1
    assert talk.noted.count("Ctrl-C once more") == 2


def test_ctrl_c_stops_the_answer_that_is_being_written(talk: Talk) -> None:
    talk.writer.batch.seconds_per_token = 0.02
    answer = talk.assistant.chat([{"role": "user", "content": TELL}])
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            raise KeyboardInterrupt

    assert not show_answer(answer, show)
    assert answer.ending is not None
    assert answer.ending.reason == "cancelled"
    assert 2 <= len(answer.text.split()) < 10
    talk.type("more")
    assert talk.conversation.turns == 1


# ------------------------------------------------------------ harmless texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢\n\ttext", "plain ü 漢\n\ttext"),
        ("a\x1b[31mred\x1b[0m b", "ared b"),
        ("a\x1b[2J\x1b[Hb\x9b1mc", "abc"),
        ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c\x9d52;c;x\x9cd", "abcd"),
        ("a\x1bPq#0\x1b\\b\x1bcc\x1b(Bd", "abcd"),
        ("a\rb\r\nc\bd\x00e", "a�b\nc�d�e"),
        ("a\u202eb\u2066c", "a�b�c"),
        ("end\x1b", "end�"),
        ("end\x1b[12", "end�[12"),
    ],
)
def test_escape_sequences_are_taken_out(text: str, shown: str) -> None:
    assert harmless(text) == shown
    stream = Harmless()
    assert "".join(stream.feed(letter) for letter in text) + stream.rest() == shown


@given(st.text(alphabet="\x1b[]PX^_\\;0m2J\x07\x9b\x9d\x9c\r\n a(B", max_size=400))
def test_no_text_can_steer_the_terminal(text: str) -> None:
    stream = Harmless()
    shown = "".join(stream.feed(letter) for letter in text) + stream.rest()
    assert not set(shown) & {chr(i) for i in (*range(9), *range(11, 32), *range(127, 160))}


def test_a_sequence_without_an_end_hides_little() -> None:
    text = "\x1b]0;" + "word " * 200
    stream = Harmless()
    shown = "".join(stream.feed(letter) for letter in text) + stream.rest()
    assert shown.count("word") == 200


# ------------------------------------------------------------ at a real terminal


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_a_conversation_at_a_terminal(tmp_path: Path, terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.write("Where is the mill?\n")
    terminal.wait_for("unknown")
    terminal.wait_for("> ")
    for _ in range(5):  # a signal that comes while the prompt is being set up is not seen
        terminal.write("\x03")
        if terminal.shows("Ctrl-C once more", seconds=3.0):
            break
    else:
        raise AssertionError(terminal.seen)
    terminal.write("/save talk.json\n")
    terminal.wait_for("saved as")
    assert terminal.end() == 0
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][1]["content"] == "unknown"
    history = tmp_path / "state" / "aios" / "chat_history"
    assert history.read_text().splitlines() == ["Where is the mill?", "/save talk.json"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.close()


class Terminal:
    """``aios chat`` with a pseudo-terminal."""

    def __init__(self, folder: Path) -> None:
        import pty

        self.seen = ""
        self._at = 0
        environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(folder / "state")}
        self.side, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aios", "chat", "--set", "model.name=scripted"],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(inner)

    def write(self, text: str) -> None:
        os.write(self.side, text.encode())

    def wait_for(self, text: str) -> None:
        """Waits until a text is shown, behind what was waited for before."""
        assert self.shows(text, seconds=30.0), (text, self.seen)

    def shows(self, text: str, seconds: float) -> bool:
        """Whether a text is shown in time, behind what was waited for before."""
        deadline = time.monotonic() + seconds
        while (found := self.seen.find(text, self._at)) < 0:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if select.select([self.side], [], [], left)[0]:
                self.seen += os.read(self.side, 4096).decode("utf-8", "replace")
        self._at = found + len(text)
        return True

    def end(self, seconds: float = 30.0) -> int:
        """Types Ctrl-D until the program ends, and reads to the end; the exit code."""
        deadline, again = time.monotonic() + seconds, 0.0
        while self.process.poll() is None and time.monotonic() < deadline:
            if time.monotonic() >= again:  # what comes while the prompt is set up is not seen
                with suppress(OSError):
                    self.write("\x04")
                again = time.monotonic() + 1.0
            if select.select([self.side], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.side, 4096).decode("utf-8", "replace")
                except OSError:  # the other side is closed
                    break
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        os.close(self.side)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # What a shell starts in the background without job control ignores Ctrl-C, and so would this.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_history_is_in_the_users_state_folder() -> None:
    assert history_file().name == "chat_history"
    assert str(history_file()).startswith(os.environ["XDG_STATE_HOME"])
