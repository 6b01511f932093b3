"""`aurora-cli chat` as people and scripts use it: a process of its own, in a pipe or on a terminal, over a real socket."""

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from cluster.chat_answer import Printer
from serve_app.engines.scripted import ScriptedConfig, ScriptedEngine
from tests.support.redis_process import RedisProcess, free_port
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[2]
COLUMNS = 60
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
async def slow(redis_server: RedisProcess) -> AsyncIterator[Stack]:
    """A node that speaks about as fast as a person reads."""
    engine = ScriptedEngine(ScriptedConfig(drills=True, words_per_second=25))
    async with Stack(redis_server.url, engine=engine) as stack, stack.serving():
        yield stack


def url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.port}"


def proxied(proxy: TcpProxy) -> str:
    return f"http://127.0.0.1:{proxy.port}"


def environment(home: Path) -> dict[str, str]:
    # Without what a test runner may say of its own terminal.
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**inherited, "AURORA_HOME": str(home), "PYTHONPATH": str(PROJECT), "TERM": "xterm"}


async def start(home: Path, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    """Start `aurora-cli chat` with its output in pipes."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "cluster", "chat", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdin=stdin, stdout=pipe, stderr=pipe, env=environment(home))


async def chat(home: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `aurora-cli chat`; return the exit code, stdout and stderr."""
    process = await start(home, *arguments)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def replies(stack: Stack, client_id: str = "ada") -> list[str]:
    """Return the stored replies of a client, of all its conversations, oldest first."""
    found, _ = await stack.service.conversations(client_id, limit=50, offset=0)
    pages = [await stack.service.history(c.conversation_id, limit=50) for c in reversed(found)]
    return [message.content for page in pages for message in page.messages if message.role == "assistant"]


async def states(stack: Stack, client_id: str = "ada") -> list[str]:
    """Return the states of a client's turns."""
    return [(await stack.service.turn(turn.turn_id)).state for turn in await stack.turns.recent_turns(client_id)]


async def test_a_question_in_a_pipe_gives_the_text_and_nothing_else(slow: Stack, tmp_path: Path) -> None:
    code, out, err = await chat(tmp_path, "Hello", "--url", url(slow), "--client-id", "ada")

    assert [out] == [f"{reply}\n" for reply in await replies(slow)]
    assert (code, err) == (0, "")


async def test_the_text_comes_while_it_is_made(slow: Stack, tmp_path: Path) -> None:
    process = await start(tmp_path, "Hello", "--url", url(slow), "--client-id", "ada")
    assert process.stdout is not None

    first = await asyncio.wait_for(process.stdout.read(1), 20)

    assert first
    assert await states(slow) == ["open"]
    rest, _ = await process.communicate()
    assert [(first + rest).decode()] == [f"{reply}\n" for reply in await replies(slow)]


async def test_a_question_can_come_through_a_pipe_too(slow: Stack, tmp_path: Path) -> None:
    process = await start(tmp_path, "--url", url(slow), "--client-id", "ada", stdin=asyncio.subprocess.PIPE)
    out, _ = await process.communicate(b"Hello\n")

    assert [out.decode()] == [f"{reply}\n" for reply in await replies(slow)]


async def test_a_cut_connection_costs_a_note_beside_the_text_and_not_a_word_of_it(slow: Stack, tmp_path: Path) -> None:
    async with TcpProxy(slow.port) as proxy:
        process = await start(tmp_path, "Hello", "--url", proxied(proxy), "--client-id", "ada")
        assert process.stdout is not None
        first = await asyncio.wait_for(process.stdout.read(1), 20)
        proxy.cut()
        rest, err = await asyncio.wait_for(process.communicate(), 30)

    assert [(first + rest).decode()] == [f"{reply}\n" for reply in await replies(slow)]
    assert err.decode() == "· connection lost, resuming …\n"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Hello", "--personality", "nobody"], "There is no personality 'nobody'. There are: "),
        (["  "], "message: must not be empty."),
        (["Hello", "--client-id", "a b"], "client_id: "),
        (["Hello", "--conversation", "conv_ada_1"], "No such conversation of this client."),
        (["Hello", "--url", "ftp://somewhere"], "Name the nodes as URLs"),
    ],
)
async def test_a_refusal_is_said_in_one_line_and_by_the_exit_code(
    slow: Stack, tmp_path: Path, arguments: list[str], said: str
) -> None:
    where = [] if "--url" in arguments else ["--url", url(slow)]

    code, out, err = await chat(tmp_path, *arguments, *where)

    assert (code, out) == (1, "")
    assert err.startswith(f"✗ {said}")
    assert err.count("\n") == 1


async def test_where_nothing_runs_it_says_so_and_what_to_do(tmp_path: Path) -> None:
    node = f"http://127.0.0.1:{free_port()}"

    code, out, err = await chat(tmp_path, "Hello", "--url", node)

    assert (code, out) == (1, "")
    assert err.startswith(f"✗ Nobody answers at {node} (no connection).")
    assert "aurora-cli up" in err


async def test_an_answer_that_failed_is_told_by_the_exit_code(slow: Stack, tmp_path: Path) -> None:
    code, out, err = await chat(tmp_path, "drill-raise", "--url", url(slow), "--client-id", "ada")

    assert code == 1
    assert [out] == [f"{reply}\n" for reply in await replies(slow)]
    assert "drill-raise" in err


async def test_ctrl_c_stops_the_answer_where_it_is_made(slow: Stack, tmp_path: Path) -> None:
    process = await start(tmp_path, "Hello", "--url", url(slow), "--client-id", "ada")
    assert process.stdout is not None
    first = await asyncio.wait_for(process.stdout.read(1), 20)

    process.send_signal(signal.SIGINT)
    rest, _ = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 130
    assert await states(slow) == ["stopped"]
    assert [(first + rest).decode()] == [f"{reply}\n" for reply in await replies(slow)]


# -- on a terminal


class Tty:
    """A terminal with a person at it. `screen` is all that was ever shown, without colours."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._master = master
        self.process = process
        self._shown = b""
        self._mark = 0

    @property
    def screen(self) -> str:
        text = self._shown.decode(errors="replace").replace("\r\n", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)

    def read(self) -> None:
        with suppress(OSError):
            self._shown += os.read(self._master, 65_536)

    def type(self, keys: str) -> None:
        self._mark = len(self.screen)
        os.write(self._master, keys.encode())

    async def sees(self, text: str, timeout: float = 20.0) -> str:
        """Wait until `text` is shown after what was typed last; return everything shown since."""
        try:
            await until(lambda: text in self.screen[self._mark :], timeout)
        except AssertionError:
            raise AssertionError(f"{text!r} was not shown:\n{self.screen}") from None
        return self.screen[self._mark :]

    async def leaves(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def terminal(home: Path, *arguments: str) -> AsyncIterator[Tty]:
    """Start `aurora-cli chat` on a terminal of `COLUMNS` columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cluster", "chat", *arguments,
        stdin=slave, stdout=slave, stderr=slave, env=environment(home), preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(slave)
    tty, loop = Tty(master, process), asyncio.get_running_loop()
    loop.add_reader(master, tty.read)
    try:
        yield tty
    finally:
        loop.remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)


async def test_a_conversation_on_a_terminal_is_led_from_hello_to_goodbye(slow: Stack, tmp_path: Path) -> None:
    async with terminal(tmp_path, "--url", url(slow), "--client-id", "ada") as tty:
        welcome = await tty.sees("you → Robbie ❯ ")
        assert "Robbie on node aurora." in welcome
        assert "not a language model" in " ".join(welcome.split())

        tty.type("Hello, I am Ada.\n")
        shown = await tty.sees("you → Robbie ❯ ")
        (reply,) = await replies(slow)
        assert " ".join(reply.split()) in " ".join(shown.split())
        assert max(len(line) for line in shown.split("\n")) <= COLUMNS

        tty.type("/nonsense\n")
        assert "There is no /nonsense here." in await tty.sees("/quit")

        tty.type("/personality nobody\n")
        assert "There is no 'nobody'." in await tty.sees("you → Robbie ❯ ")

        tty.type("/personality kristina\n")
        await tty.sees("you → Kristina ❯ ")
        tty.type("/history\n")
        await tty.sees("Nothing has been said yet.")

        tty.type(CTRL_D)
        assert await tty.leaves() == 0


async def test_the_conversation_goes_on_next_time(slow: Stack, tmp_path: Path) -> None:
    async with terminal(tmp_path, "--url", url(slow)) as tty:
        await tty.sees("❯ ")
        tty.type("Hello, I am Ada.\n")
        await tty.sees("❯ ")
        tty.type("/quit\n")
        assert await tty.leaves() == 0

    async with terminal(tmp_path, "--url", url(slow)) as tty:
        assert "Going on with “Hello, I am Ada.”, 2 messages" in " ".join((await tty.sees("❯ ")).split())
        tty.type("/history\n")
        assert "Hello, I am Ada." in await tty.sees("❯ ")

        tty.type("/new\n")
        await tty.sees("A new conversation.")
        tty.type("What is my name?\n")
        await tty.sees("❯ ")

    owner = (tmp_path / "client_id").read_text()
    found, _ = await slow.service.conversations(owner, limit=50, offset=0)
    assert [c.messages for c in found] == [2, 2]


async def test_ctrl_c_stops_the_running_answer_and_the_conversation_goes_on(slow: Stack, tmp_path: Path) -> None:
    async with terminal(tmp_path, "--url", url(slow), "--client-id", "ada") as tty:
        await tty.sees("❯ ")
        tty.type("Hello\n")
        await until(lambda: said_something(slow), 20)
        tty.type(CTRL_C)
        await tty.sees("(stopped)")
        assert await states(slow) == ["stopped"]

        await tty.sees("❯ ")
        tty.type(CTRL_C)
        await tty.sees("Ctrl-C again")
        await tty.sees("❯ ")
        tty.type(CTRL_C)
        assert await tty.leaves() == 0


async def said_something(stack: Stack) -> bool:
    turns = await stack.turns.recent_turns("ada")
    return bool(turns) and (await stack.service.turn(turns[0].turn_id)).seq > 0


async def test_a_lost_connection_is_noted_once_and_no_word_comes_twice(slow: Stack, tmp_path: Path) -> None:
    async with TcpProxy(slow.port) as proxy, terminal(tmp_path, "--url", proxied(proxy), "--client-id", "ada") as tty:
        await tty.sees("❯ ")
        tty.type("Hello\n")
        await until(lambda: said_something(slow), 20)
        proxy.cut()
        shown = await tty.sees("you → Robbie ❯ ")

    note = "· connection lost, resuming …"
    assert shown.count(note) == 1
    (reply,) = await replies(slow)
    assert " ".join(reply.split()) in " ".join(shown.replace(note, " ").split())


async def test_an_answer_that_still_runs_elsewhere_can_be_stopped(slow: Stack, tmp_path: Path) -> None:
    elsewhere = await start(tmp_path, "Hello", "--url", url(slow), "--client-id", "ada")
    await until(lambda: said_something(slow), 20)
    async with terminal(tmp_path, "--url", url(slow), "--client-id", "ada") as tty:
        await tty.sees("❯ ")
        tty.type("And?\n")
        assert "/stop stops it." in " ".join((await tty.sees("❯ ")).split())
        tty.type("/stop\n")
        await tty.sees("That answer is stopped.")

    assert await states(slow) == ["stopped"]
    await asyncio.wait_for(elsewhere.communicate(), 20)


def test_replies_are_wrapped_between_words_however_they_are_cut_into_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(width=12)
    for text in ["one tw", "o th", "ree four\n", "  five 漢字漢字漢字 supercalifragilistic x"]:
        printer.write(text)
    printer.end_line()

    assert capsys.readouterr().out == "one two\nthree four\n  five\n漢字漢字漢字\nsupercalifragilistic\nx\n"


def test_a_reply_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(width=80)
    printer.write("safe \x1b]0;title\x07\x1b[2Jtext")
    printer.end_line()

    assert capsys.readouterr().out == "safe ]0;title[2Jtext\n"
