"""`aurora-cli chat`: talking to Aurora from a terminal, or from a pipe.

Holds nothing that matters: the conversation is kept by Aurora, and an answer goes on whether or not anybody watches it
here. How it looks is `cluster.chat_answer`'s.
"""

import asyncio
import contextlib
import re
import secrets
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from cluster import run_record
from cluster.chat_answer import Answer, Screen
from cluster.failures import LifecycleError
from cluster.settings import Settings
from serve_app.client import AuroraClient, BrokenPromise, Failed, NobodyAnswers, RequestRefused, Stopped

HELLO_PATIENCE_S = 3.0
"""For the first words: if nothing runs, a person wants to know now."""
PATIENCE_S = 300.0
_HELP = """\
/personality NAME   talk to somebody else; without NAME: who there is
/new                begin a new conversation
/history [N]        the last N messages of this conversation
/stop               stop an answer that still runs (while you watch one: Ctrl-C)
/quit               leave (also Ctrl-D); the conversation stays"""
_T = TypeVar("_T")
_REFUSALS = (RequestRefused, NobodyAnswers, BrokenPromise)


def chat(
    message: Annotated[str | None, typer.Argument(help="One question; without it: a conversation.")] = None,
    url: Annotated[list[str] | None, typer.Option(help="A node; may be repeated. Default: the Aurora of this machine.")] = None,
    personality: Annotated[str, typer.Option(help="Who shall answer; default: the service's.")] = "",
    client_id: Annotated[str, typer.Option(help="Who is asking; default: this terminal's own, kept between calls.")] = "",
    conversation: Annotated[str, typer.Option(help="The conversation to go on with.")] = "",
) -> None:
    """Talk to Aurora: one question, or a conversation."""
    screen = Screen()
    try:
        settings = Settings()
        if message is None and not sys.stdin.isatty():
            message = sys.stdin.read().strip()
        nodes = [node if "://" in node else f"http://{node}" for node in url or [_here(settings)]]
        with asyncio.Runner() as runner:
            terminal = Terminal(runner, screen, nodes, client_id or _own_id(settings.home), personality, conversation)
            code = terminal.once(message) if message is not None else terminal.talk()
    except ValidationError as error:
        first = error.errors()[0]
        screen.error(f"AURORA_{str(first['loc'][0]).upper()}: {first['msg']}.")
        code = 1
    except (*_REFUSALS, LifecycleError, ValueError) as error:
        screen.error(str(error))
        code = 1
    if code:
        raise typer.Exit(code)


class Terminal:
    """A person's, or a pipe's, end of the conversation."""

    def __init__(
        self, runner: asyncio.Runner, screen: Screen, nodes: list[str], client_id: str, personality: str, conversation: str
    ) -> None:
        """Talk over `nodes` as `client_id`. Sends nothing yet."""
        self._runner = runner
        self._screen = screen
        self._hello = AuroraClient(nodes, client_id, patience_s=HELLO_PATIENCE_S)
        self._client = AuroraClient(nodes, client_id, patience_s=PATIENCE_S, on_lost=self._lost)
        self._personality, self._conversation = personality, conversation
        self._names: dict[str, str] = {}
        self._answer: Answer | None = None
        self._open_turn = ""

    def once(self, message: str) -> int:
        """Ask one question, print the answer, and return the exit code."""
        try:
            self._say_hello()
            if not self._screen.plain:
                self._screen.out.print(self._name, style="bold cyan")
            answer = self._ask(message)
            end = answer.assembly.end
            return 130 if isinstance(end, Stopped) else int(answer.spoiled or isinstance(end, Failed))
        except KeyboardInterrupt:
            return 130
        finally:
            self._close()

    def talk(self) -> int:
        """Hold a conversation until the person leaves."""
        import readline  # noqa: F401 - `input` edits lines with it; wanted only where somebody types

        try:
            self._welcome(self._say_hello())
            warned = False
            while True:
                try:
                    line = input(f"\n\001\033[1m\002you → {self._name}\001\033[0m\002 ❯ ").strip()
                    warned = False
                    if line and not self._obey(line):
                        return 0
                except KeyboardInterrupt:
                    if warned:
                        return 0
                    warned = True
                    self._screen.dim("\nCtrl-C again, or Ctrl-D, leaves; /help shows what else there is.")
                except EOFError:
                    self._screen.out.print()
                    return 0
                except _REFUSALS as error:
                    self._refused(error)
        finally:
            self._close()

    def _obey(self, line: str) -> bool:
        """Do what `line` says; return whether the conversation goes on."""
        command, _, rest = line.partition(" ")
        match command:
            case "/quit" | "/exit":
                return False
            case "/help":
                self._screen.out.print(_HELP, markup=False)
            case "/personality":
                self._turn_to(rest.strip())
            case "/new":
                self._conversation = str(self._run(self._client.start_conversation(self._personality))["conversation_id"])
                self._screen.dim("A new conversation.")
            case "/history":
                self._show_history(rest.strip())
            case "/stop":
                self._stop_open()
            case _ if re.fullmatch(r"/\w*", command):
                self._screen.out.print(f"There is no {command} here. What there is:\n{_HELP}", markup=False)
            case _:
                self._screen.out.print(f"\n{self._name}", style="bold cyan")
                self._ask(line)
        return True

    def _ask(self, message: str) -> Answer:
        """Print the answer to `message` as it comes, and return it."""
        self._answer = answer = Answer(self._screen, self._client.stop)
        events = self._client.ask(
            message, personality=self._personality, conversation_id=self._conversation, assembly=answer.assembly
        )
        try:
            with self._screen.undisturbed():
                self._run(answer.show(events))
        finally:
            self._conversation = answer.assembly.conversation_id or self._conversation
            self._open_turn = "" if answer.assembly.end else answer.assembly.turn_id
        return answer

    def _turn_to(self, name: str) -> None:
        if name not in self._names:
            who = ", ".join(f"{name} ({display})" for name, display in self._names.items())
            self._screen.out.print((f"There is no {name!r}. " if name else "") + f"There are: {who}.", markup=False)
            return
        self._personality, self._conversation = name, ""
        self._screen.dim(f"You talk to {self._name} now.")
        self._go_on()

    def _show_history(self, wanted: str) -> None:
        if not self._conversation:
            self._screen.dim("Nothing has been said yet.")
            return
        limit = min(200, max(1, int(wanted))) if wanted.isdecimal() else 10
        page = self._run(self._client.history(self._conversation, limit=limit))
        for message in page["messages"]:
            user = message["role"] == "user"
            who = "you" if user else self._display(message.get("personality"))
            self._screen.out.print(f"\n{who}", style="bold" if user else "bold cyan", markup=False)
            printer = self._screen.new_printer()
            printer.write(message["content"])
            printer.end_line()
            if message.get("status"):
                self._screen.dim(f"({message['status']})")
        if page["count"] < page["total"]:
            self._screen.dim(f"\n(the last {page['count']} of {page['total']}; /history {page['total']} shows more)")

    def _stop_open(self) -> None:
        if not self._open_turn:
            self._screen.dim("No answer runs that this terminal knows of.")
            return
        turn = self._run(self._client.stop(self._open_turn))
        self._open_turn = ""
        self._screen.dim(f"That answer is {turn['state']}.")

    def _say_hello(self) -> dict[str, Any]:
        """Learn who there is, and return what the service says about itself.

        Raises:
            NobodyAnswers: nothing runs there.
        """

        async def hello() -> tuple[dict[str, Any], dict[str, Any]]:
            return await self._hello.info(), await self._hello.personalities()

        info, known = self._run(hello())
        self._names = {person["name"]: person["display_name"] for person in known["personalities"]}
        self._personality = self._personality or ("" if self._conversation else known["default"])
        return info

    def _welcome(self, info: dict[str, Any]) -> None:
        if self._personality and self._personality not in self._names:
            raise LifecycleError(f"There is no personality {self._personality!r}. There are: {', '.join(self._names)}.")
        self._screen.out.print(f"[bold cyan]{self._name}[/] [dim]on node {info['node']}. /help shows what you can do here.[/]")
        if not all(engine["language_model"] for engine in info["engines"]):
            self._screen.dim(f"The engine here: {info['engine']}.")
        if not self._conversation:
            self._go_on()

    def _go_on(self) -> None:
        """Go on with the latest conversation with this personality, if there is one."""
        for conversation in self._run(self._hello.conversations(limit=200))["conversations"]:
            if conversation["personality"] == self._personality and conversation["messages"]:
                self._conversation = conversation["conversation_id"]
                said = f"“{conversation['title']}”, {conversation['messages']} messages"
                self._screen.dim(f"Going on with {said}; /new begins another.")
                return

    @property
    def _name(self) -> str:
        return self._display(self._personality)

    def _display(self, name: str | None) -> str:
        return self._names.get(name or "", name or "Aurora")

    def _lost(self, _why: str) -> None:
        if self._answer is not None:
            self._answer.lost()

    def _refused(self, error: Exception) -> None:
        hint = ""
        if isinstance(error, RequestRefused) and error.turn_id:
            self._open_turn, hint = error.turn_id, " /stop stops it."
        self._screen.error(f"{error}{hint}")

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(work)

    def _close(self) -> None:
        for client in (self._hello, self._client):
            self._run(client.__aexit__())


def _here(settings: Settings) -> str:
    """Return the Aurora that runs on this machine, or the one that would."""
    record = run_record.load(settings.home)
    return record.api_url if record else settings.local_url


def _own_id(home: Path) -> str:
    """Return this home's client id, made at the first call: a conversation goes on next time.

    Raises:
        LifecycleError: the folder cannot be written.
    """
    path = home / "client_id"
    try:
        with contextlib.suppress(FileNotFoundError):
            if known := path.read_text().strip():
                return known
        home.mkdir(parents=True, exist_ok=True)
        path.write_text(made := f"cli-{secrets.token_hex(6)}")
    except OSError as error:
        raise LifecycleError(f"{path} cannot be kept ({error.strerror}): name yourself with --client-id.") from error
    return made
