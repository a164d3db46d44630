"""What becomes of bodies when a system prompt is put before them: one table for Envoy's script and its Python double.

`%M` stands for the message. None as what comes of it: the request is refused.
"""

from __future__ import annotations

from tuneyard.api.systemprompt import SystemPrompt

TEXT = 'You are "Acme".\n日本語 \\ \x7f 😀'
IF_ABSENT, ALWAYS = SystemPrompt(text=TEXT), SystemPrompt(text=TEXT, apply="Always")

_HEAD = b'{"model":"m","messages":'
_USER = b'{"role":"user","content":"hi"}'
_SYSTEM = b'{"role":"system","content":"mine"}'
_DEVELOPER = b'{ "content" : [ {"type":"text","text":"]}"} ] , "role" : "developer" }'


def chat(*messages: bytes, tail: bytes = b"}") -> bytes:
    return _HEAD + b"[" + b",".join(messages) + b"]" + tail


def both(sent: bytes, came: bytes) -> tuple[bytes, bytes | None, bytes | None]:
    """The same comes of it in both ways."""
    return sent, came, came


_DEEP = b'{"role":"user","content":[{"type":"text","text":"x","messages":[{"role":"system"}]}]}'
_TOOLS = b', "tools":[{"b":1,"a":9007199254740993}],"seed":-0.0,"x":"caf\\u00e9 \\/"}'

TABLE: dict[str, tuple[bytes, bytes | None, bytes | None]] = {
    # what is sent, what comes of it with IfAbsent, and with Always
    "no instructions": (chat(_USER), chat(b"%M", _USER), chat(b"%M", _USER)),
    "no messages": (chat(), chat(b"%M"), chat(b"%M")),
    "no messages but space": (_HEAD + b"[ \n]}", _HEAD + b"[%M \n]}", _HEAD + b"[%M \n]}"),
    "a system message": (chat(_SYSTEM, _USER), chat(_SYSTEM, _USER), chat(b"%M", _USER)),
    "a developer's": (chat(_DEVELOPER, _USER), chat(_DEVELOPER, _USER), chat(b"%M", _USER)),
    "nothing else": (chat(_SYSTEM), chat(_SYSTEM), chat(b"%M")),
    "several, anywhere": (
        chat(_SYSTEM, _USER, _DEVELOPER, _SYSTEM, b"\n " + _USER + b"\t", _SYSTEM),
        chat(_SYSTEM, _USER, _DEVELOPER, _SYSTEM, b"\n " + _USER + b"\t", _SYSTEM),
        chat(b"%M", _USER, b"\n " + _USER + b"\t"),
    ),
    "space is kept": both(chat(b"  " + _USER + b" ", b"\n" + _USER), chat(b"%M", b"  " + _USER + b" ", b"\n" + _USER)),
    "all other bytes stay": both(chat(_DEEP, tail=_TOOLS), chat(b"%M", _DEEP, tail=_TOOLS)),
    "nested messages are none": both(
        b'{"metadata":{"messages":[]},"messages":[' + _USER + b'],"model":"m"}',
        b'{"metadata":{"messages":[]},"messages":[%M,' + _USER + b'],"model":"m"}',
    ),
    "a message that says role inside": both(
        chat(b'{"role":"user","content":{"role":"system"}}'),
        chat(b"%M", b'{"role":"user","content":{"role":"system"}}'),
    ),
    "a text that looks like one": both(
        chat(b'{"role":"user","content":"\\",\\"role\\":\\"system\\""}'),
        chat(b"%M", b'{"role":"user","content":"\\",\\"role\\":\\"system\\""}'),
    ),
    "no role": (chat(b'{"content":"hi"}'), chat(b"%M", b'{"content":"hi"}'), None),
    "an empty message": (chat(b"{}"), chat(b"%M", b"{}"), None),
    "a role of another shape": (chat(b'{"role":"System"}'), chat(b"%M", b'{"role":"System"}'), None),
    "a role with space": (chat(b'{"role":"system "}'), chat(b"%M", b'{"role":"system "}'), None),
    "an escaped role": (chat(b'{"role":"syst\\u0065m"}'), None, None),
    "an escaped key": (chat(b'{"r\\u006fle":"system"}'), None, None),
    "a role twice": (chat(b'{"role":"user","role":"system"}'), None, None),
    "a role that is a list": (chat(b'{"role":["system"]}'), None, None),
    "messages twice": (b'{"model":"m","messages":[],"messages":[' + _SYSTEM + b"]}", None, None),
    "messages is an object": (b'{"model":"m","messages":{"0":' + _SYSTEM + b"}}", None, None),
    "messages is a text": (b'{"model":"m","messages":"hi"}', None, None),
    "messages is null": (b'{"model":"m","messages":null}', None, None),
    "no member messages": (b'{"model":"m","prompt":"hi"}', None, None),
    "a message that is a text": (chat(b'"system"'), None, None),
    "a list in the list": (chat(b"[" + _SYSTEM + b"]"), None, None),
    "a comma too many": (chat(_USER, b""), None, None),
    "a comma too few": (_HEAD + b"[" + _USER + b" " + _USER + b"]}", None, None),
    "brackets of two kinds": (chat(b'{"role":"user","content":[}}'), None, None),
    "a member without a comma": (b'{"model":"m" "messages":[' + _SYSTEM + b"]}", None, None),
    "a member without a value": (b'{"model":"m","x":,"messages":[]}', None, None),
    "a template": (chat(_USER, tail=b',"chat_template":"x"}'), chat(b"%M", _USER, tail=b',"chat_template":"x"}'), None),
    "no template": both(
        chat(_USER, tail=b',"chat_template":null}'), chat(b"%M", _USER, tail=b',"chat_template":null}')
    ),
    "a template among arguments": (
        chat(_USER, tail=b',"chat_template_kwargs":{"chat_template":"x"}}'),
        chat(b"%M", _USER, tail=b',"chat_template_kwargs":{"chat_template":"x"}}'),
        None,
    ),
    "arguments of the template": both(
        chat(_USER, tail=b',"chat_template_kwargs":{"enable_thinking":false}}'),
        chat(b"%M", _USER, tail=b',"chat_template_kwargs":{"enable_thinking":false}}'),
    ),
    "cut from its beginning": (
        chat(_USER, tail=b',"truncate_prompt_tokens":8}'),
        chat(b"%M", _USER, tail=b',"truncate_prompt_tokens":8}'),
        None,
    ),
}
