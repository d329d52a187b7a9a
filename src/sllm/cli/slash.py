"""The commands of a chat, which begin with a slash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sllm.cli.terminal import note, say, say_facts
from sllm.library.modelfile import add_parameter, parse_parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm.cli.chat import Chat

HELP = '''/set parameter NAME VALUE   set a sampling option; without a VALUE, take it back
/set system TEXT            set the system message; without a TEXT, take it back
/set format json            answer in JSON; /set noformat takes it back
/set verbose, quiet         say how fast answers were, or not
/set history, nohistory     keep what you type for next time, or not
/set think, nothink         let the model think, or not
/show info                  what the model is; also license, modelfile, parameters, system, template
/load MODEL                 go on with another model
/save NAME                  keep the model with what is set and said
/list                       the models of the server
/clear                      forget what was said
/bye                        leave; so does Ctrl-D
"""  begins and ends a message of several lines; Ctrl-C ends an answer'''
_PARTS = ("license", "modelfile", "parameters", "system", "template")


def run_slash(chat: Chat, text: str) -> bool:
    """Do a command; return whether the chat goes on. Raises what the server answers."""
    name, _, rest = text.partition(" ")
    if name in {"/bye", "/exit", "/quit"}:
        return False
    command = _COMMANDS.get(name)
    if command is None:
        note(f"unknown command {name}: /? lists them")
    else:
        command(chat, rest.strip())
    return True


def _help(chat: Chat, rest: str) -> None:
    del chat, rest
    say(HELP)


def _set(chat: Chat, rest: str) -> None:
    name, _, value = rest.partition(" ")
    setting = _SETTINGS.get(name)
    if setting is None:
        note(f"what to set? one of {', '.join(_SETTINGS)}")
    else:
        setting(chat, value.strip().removeprefix('"""').removesuffix('"""'))


def _set_parameter(chat: Chat, value: str) -> None:
    name, _, text = value.partition(" ")
    if not text:
        chat.options.pop(name, None)
        note(f"{name} is the model's own again")
        return
    try:
        add_parameter(chat.options, name, parse_parameter(name, text.strip()))
    except ValueError as error:
        note(f"error: {error}")
    else:
        note(f"{name} is {chat.options[name]}")


def _set_system(chat: Chat, value: str) -> None:
    chat.system = value or None
    note("the system message is set" if value else "the system message is the model's own again")


def _set_format(chat: Chat, value: str) -> None:
    if value != "json":
        note("the format is json, or nothing: /set noformat")
        return
    chat.body["format"] = value
    note("answers are JSON")


def _unset_format(chat: Chat, value: str) -> None:
    del value
    chat.body.pop("format", None)
    note("answers are free again")


def _flag(attribute: str, said: str, *, on: bool) -> Callable[[Chat, str], None]:
    def setting(chat: Chat, value: str) -> None:
        del value
        setattr(chat, attribute, on)
        note(said)

    return setting


def _think(said: str, *, on: bool) -> Callable[[Chat, str], None]:
    def setting(chat: Chat, value: str) -> None:
        del value
        chat.body["think"] = on
        note(said)

    return setting


def _show(chat: Chat, rest: str) -> None:
    if rest not in {"", "info", *_PARTS}:
        note(f"what to show? one of info, {', '.join(_PARTS)}")
        return
    found = chat.client.ask("POST", "/api/show", {"model": chat.model})
    if rest in _PARTS:
        own = chat.system if rest == "system" else None
        say(str(own or found.get(rest) or f"no {rest}").rstrip("\n"))
        if rest == "parameters" and chat.options:
            say_facts("set here", chat.options)
        return
    details = {key: value for key, value in found.get("details", {}).items() if value}
    say_facts(chat.model, {key.replace("_", " "): _shown(value) for key, value in details.items()})


def _load(chat: Chat, rest: str) -> None:
    if not rest:
        note("load what? /load MODEL")
        return
    note(f"loading {rest}", dim=True)
    chat.load(rest)


def _save(chat: Chat, rest: str) -> None:
    if not rest:
        note("save as what? /save NAME")
        return
    body: dict[str, Any] = {"model": rest, "from": chat.model, "stream": False}
    body |= {"parameters": chat.options} if chat.options else {}
    body |= {"system": chat.system} if chat.system else {}
    body |= {"messages": chat.conversation} if chat.messages else {}
    chat.client.ask("POST", "/api/create", body)
    note(f"saved {rest}")


def _list(chat: Chat, rest: str) -> None:
    del rest
    for model in chat.client.ask("GET", "/api/tags").get("models", ()):
        say(model["name"])


def _clear(chat: Chat, rest: str) -> None:
    del rest
    chat.clear()
    note("what was said is forgotten")


def _shown(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


_COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/?": _help,
    "/help": _help,
    "/set": _set,
    "/show": _show,
    "/load": _load,
    "/save": _save,
    "/list": _list,
    "/clear": _clear,
}
_SETTINGS: dict[str, Callable[[Chat, str], None]] = {
    "parameter": _set_parameter,
    "system": _set_system,
    "format": _set_format,
    "noformat": _unset_format,
    "verbose": _flag("verbose", "figures follow each answer", on=True),
    "quiet": _flag("verbose", "no figures", on=False),
    "history": _flag("keeps_history", "what you type is kept", on=True),
    "nohistory": _flag("keeps_history", "what you type is not kept", on=False),
    "think": _think("the model may think", on=True),
    "nothink": _think("the model does not think", on=False),
}
