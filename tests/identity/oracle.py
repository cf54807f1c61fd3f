#!/usr/bin/env python3
"""Computes tests/identity/vectors.txt with nothing of the crate.

A second implementation of the encoding that the rustdoc of `hapax::identity` fixes, with a BLAKE3 of its own. Python 3, no packages.

    oracle.py            prints the vectors
    oracle.py --check    compares them with vectors.txt beside this file; exit 1 if they differ

A released version of the crate must go on giving these keys: add vectors, never change one.
"""

import hashlib
import json
import os
import struct
import sys

# --- BLAKE3, after section 2 of its paper -------------------------------------------------------------------------

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
COLUMNS_AND_DIAGONALS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED, CONTEXT, MATERIAL = 1, 2, 4, 8, 16, 32, 64
MASK = 0xFFFFFFFF


def rotate(value, by):
    return (value >> by | value << (32 - by)) & MASK


def compress(chaining, block, counter, flags):
    words = struct.unpack("<16I", block[0].ljust(64, b"\0"))
    v = list(chaining) + list(IV[:4]) + [counter & MASK, counter >> 32, block[1], flags]
    for _ in range(7):
        for at, (a, b, c, d) in enumerate(COLUMNS_AND_DIAGONALS):
            for word, right_d, right_b in ((words[2 * at], 16, 12), (words[2 * at + 1], 8, 7)):
                v[a] = (v[a] + v[b] + word) & MASK
                v[d] = rotate(v[d] ^ v[a], right_d)
                v[c] = (v[c] + v[d]) & MASK
                v[b] = rotate(v[b] ^ v[c], right_b)
        words = [words[at] for at in PERMUTATION]
    return tuple(v[at] ^ v[at + 8] for at in range(8))


def subtree(data, counter, key, flags, root):
    """The chaining value of the chunks in data; counter is the number of the first."""
    last = ROOT if root else 0
    if len(data) <= 1024:
        chaining = key
        blocks = [data[at:at + 64] for at in range(0, len(data), 64)] or [b""]
        for at, block in enumerate(blocks):
            own = flags | (CHUNK_START if at == 0 else 0)
            if at == len(blocks) - 1:
                own |= CHUNK_END | last
            chaining = compress(chaining, (block, len(block)), counter, own)
        return chaining
    left = 1024
    while left * 2 < len(data):
        left *= 2
    values = subtree(data[:left], counter, key, flags, False) + subtree(data[left:], counter + left // 1024, key, flags, False)
    return compress(key, (struct.pack("<16I", *values), 64), 0, flags | PARENT | last)


def hashed(data, key, flags):
    return struct.pack("<8I", *subtree(data, 0, key, flags, True))


def blake3(data):
    return hashed(data, IV, 0)


def keyed(key, data):
    return hashed(data, struct.unpack("<8I", key), KEYED)


def derive_key(context, material):
    return hashed(material, struct.unpack("<8I", hashed(context, IV, CONTEXT)), MATERIAL)


def check_blake3():
    """Against the first words of BLAKE3's published test vectors: input byte n is n mod 251."""
    key, context = b"whats the Elvish word for friend", b"BLAKE3 2019-12-27 16:29:52 test vectors context"
    published = {
        0: ("af1349b9f5f9a1a6", "92b2b75604ed3c76", "2cc39783c223154f"),
        1: ("2d3adedff11b61f1", "6d7878dfff2f4856", "b3e2e340a117a499"),
    }
    for size, expected in published.items():
        data = pattern(size)
        got = tuple(digest.hex()[:16] for digest in (blake3(data), keyed(key, data), derive_key(context, data)))
        assert got == expected, (size, got)


def pattern(size):
    return bytes(at % 251 for at in range(size))


# --- the encoding, version 1 --------------------------------------------------------------------------------------

def length(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def prefixed(value):
    return length(len(value)) + value


def wide(number):
    return number.to_bytes(16, "big", signed=True)


class Absent(Exception):
    pass


def there(value):
    if not value:
        raise Absent
    return value


def last_header(message, name):
    found = [value for own, value in message.get("headers", []) if own == name]
    return found[-1] if found else None


ALGORITHMS = {
    "sha256": (b"\x01", lambda data: hashlib.sha256(data).digest()),
    "blake3": (b"\x02", blake3),
    "md5": (b"\x03", lambda data: hashlib.md5(data).digest()),
}


def one(step, message):
    kind, *rest = step
    if kind == "text":
        return b"\x01" + prefixed(there(rest[0]))
    if kind == "bytes":
        return b"\x02" + prefixed(there(rest[0]))
    if kind == "integer":
        return b"\x03" + wide(int(rest[0]))
    if kind == "header":
        value = None
        for name in rest:
            value = last_header(message, name) or value
            if value:
                break
        return b"\x04" + prefixed(rest[0]) + prefixed(there(value))
    if kind == "record_key":
        return b"\x05" + prefixed(there(message.get("key")))
    if kind == "json":
        value = json.loads(there(message.get("payload")))
        for token in rest[0].decode().split("/")[1:]:
            token = token.replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(token)] if isinstance(value, list) else value[token]
            except (KeyError, IndexError, TypeError):
                raise Absent
        if isinstance(value, str):
            return b"\x06" + prefixed(rest[0]) + prefixed(there(value.encode()))
        assert type(value) is int
        return b"\x07" + prefixed(rest[0]) + wide(value)
    if kind == "position":
        partition, offset = message["at"]
        return b"\x08" + prefixed(message["topic"]) + struct.pack(">iq", partition, offset)
    if kind == "sequence":
        names = rest or (b"hapax-source", b"hapax-sequence")
        source, number = (there(last_header(message, name)) for name in names)
        number = int(number) if number.isdigit() else struct.unpack(">Q", number)[0]
        return b"\x0a" + prefixed(source) + struct.pack(">Q", number)
    if kind == "digest":
        number, algorithm = ALGORITHMS[rest[0]]
        out = b""
        for part in rest[1:]:
            if part == "payload":
                out += b"\x09" + number + b"\x01" + algorithm(there(message.get("payload")))
            elif part == "key":
                out += b"\x09" + number + b"\x02" + algorithm(there(message.get("key")))
            else:
                name = part[len("header:"):].encode()
                out += b"\x09" + number + b"\x03" + prefixed(name) + algorithm(there(last_header(message, name)))
        return out
    raise AssertionError(kind)


def identity(steps, message):
    """Runs the steps as a stack machine; an absent identity stands on the stack as None."""
    stack = []
    for step in steps:
        if step[0] in ("and", "and_then", "or"):
            second, first = stack.pop(), stack.pop()
            if step[0] == "and_then":
                stack.append(second)
                continue
            if step[0] == "and":
                stack.append(first + second if first is not None and second is not None else None)
            else:
                stack.append(first if first is not None else second)
            continue
        try:
            stack.append(one(step, message))
        except Absent:
            stack.append(None)
    (whole,) = stack
    assert whole and len(whole) <= 4096
    return whole


def key(scope, message, whole):
    encoded = b"\x01\x21" + prefixed(scope["group"]) + b"\x22" + prefixed(scope["handler"])
    if "tenant" in scope:
        encoded += b"\x23" + prefixed(scope["tenant"])
    if "secret" in scope:
        own = keyed(derive_key(b"hapax identity v1 secret", scope["secret"]), encoded)
    else:
        own = derive_key(b"hapax identity v1 scope", encoded)
    topic = message.get("topic")
    where = b"\x10" if topic is None or scope.get("across") else b"\x11" + prefixed(topic)
    return keyed(own, b"\x01" + where + whole)[:16]


def fingerprint(scope, covers, message):
    def own(kind):
        context = b"hapax identity v1 fingerprint " + kind
        if "secret" in scope:
            return keyed(derive_key(b"hapax identity v1 secret", scope["secret"]), context)
        return derive_key(context, b"")

    first, *headers = covers
    payload = message.get("payload")
    if not headers:
        if first == b"nothing":
            return bytes(16)
        return keyed(own(b"null"), b"")[:16] if payload is None else keyed(own(b"payload"), payload)[:16]
    data = b""
    if first == b"payload":
        data += b"\x30" if payload is None else b"\x31" + prefixed(payload)
    for name in headers:
        value = last_header(message, name)
        data += b"\x32" + prefixed(name) if value is None else b"\x33" + prefixed(name) + prefixed(value)
    return keyed(own(b"parts"), data)[:16]


# --- the vectors --------------------------------------------------------------------------------------------------

SCOPE = {"group": b"payments", "handler": b"charge"}
UUID = b"0189f7ea-ae2c-7809-8aeb-b819cf5e9e7f"


def order(**more):
    return {"topic": b"orders", "at": (3, 42), "key": b"customer-7", "payload": b'{"id":"a1","n":7}', "headers": [(b"message-id", UUID)], **more}


def blocks():
    words = [int(word, 16) for word in (
        "6165300e 87a79a55 f7c60bd0 34febd0b 6503cf04 854f709e fb0fc034 874c9c65 "
        "2f94cc40 15a12deb 5c15f4a3 490786bb 6d658673 a4341f7d 8fd75920 efd18d5a").split()]
    first = struct.pack("<16I", *words)
    words[5] ^= 1 << 10
    words[10] ^= 1 << 31
    second = struct.pack("<16I", *words)
    assert first != second and hashlib.md5(first).digest() == hashlib.md5(second).digest()
    return first, second


def vectors():
    header = ("header", b"message-id")
    yield "header", SCOPE, order(), [header], None
    yield "header, no message", SCOPE, {"headers": [(b"message-id", UUID)]}, [header], None
    yield "header, other topic", SCOPE, order(topic=b"refunds"), [header], None
    yield "header, empty topic", SCOPE, order(topic=b""), [header], None
    yield "header, long topic", SCOPE, order(topic=b"t" * 249), [header], None
    yield "header, across topics", {**SCOPE, "across": True}, order(), [header], None
    yield "header, other group", {**SCOPE, "group": b"ledger"}, order(), [header], None
    yield "header, other handler", {**SCOPE, "handler": b"mail"}, order(), [header], None
    yield "header, tenant", {**SCOPE, "tenant": b"acme"}, order(), [header], None
    yield "header, secret", {**SCOPE, "secret": b"sixteen bytes +1!"}, order(), [header], None
    yield "header, tenant, secret, across topics", {**SCOPE, "tenant": b"acme", "secret": pattern(40), "across": True}, order(), [header], None
    yield "header, names that end where others begin", {"group": b"paymentsc", "handler": b"harge"}, order(), [header], None
    yield "header, last of three", SCOPE, order(headers=[(b"id", b"1"), (b"message-id", b"x"), (b"id", b"2")]), [("header", b"id")], None
    yield "header, not UTF-8", SCOPE, order(headers=[(b"id", b"\xff\xfe\x00\x80")]), [("header", b"id")], None
    yield "header, other name of the same id", SCOPE, order(headers=[(b"id", UUID), (b"message-id", b"")]), [("header", b"message-id", b"ce_id", b"id")], None
    for name, value in [("case", b"ORDER-1"), ("no case", b"order-1"), ("trailing space", b"order-1 "), ("accent", "órder-1".encode()),
                        ("accent, composed otherwise", "o\u0301rder-1".encode()), ("NUL", b"order-1\0"), ("separators", b"a:b|c/d,e;f\n")]:
        yield "header, " + name, SCOPE, order(headers=[(b"id", value)]), [("header", b"id")], None
    yield "header, 127 bytes", SCOPE, order(headers=[(b"id", b"p" * 127)]), [("header", b"id")], None
    yield "header, 128 bytes", SCOPE, order(headers=[(b"id", b"p" * 128)]), [("header", b"id")], None
    yield "header, 191 and more", SCOPE, order(headers=[(b"id", b"p" * 191 + b"and more")]), [("header", b"id")], None
    yield "header, the largest", SCOPE, order(headers=[(b"id", b"p" * 4090)]), [("header", b"id")], None
    yield "record key", SCOPE, order(), [("record_key",)], None
    yield "record key, binary", SCOPE, order(key=bytes(range(256))), [("record_key",)], None
    yield "json, string", SCOPE, order(), [("json", b"/id")], None
    yield "json, integer", SCOPE, order(), [("json", b"/n")], None
    yield "json, digits in a string", SCOPE, order(payload=b'{"n":"7"}'), [("json", b"/n")], None
    yield "json, least and greatest", SCOPE, order(payload=b'[-9223372036854775808,18446744073709551615]'), [("json", b"/0"), ("json", b"/1"), ("and",)], None
    yield "json, deep and escaped", SCOPE, order(payload='{"a/b":[0,{"m~n":"\\u00e9\\n"}]}'.encode()), [("json", b"/a~1b/1/m~0n")], None
    yield "position", SCOPE, order(), [("position",)], None
    yield "position, across topics", {**SCOPE, "across": True}, order(), [("position",)], None
    yield "position, the last", SCOPE, order(at=(2**31 - 1, 2**63 - 1)), [("position",)], None
    yield "position, the first", SCOPE, order(at=(0, 0)), [("position",)], None
    stamped = lambda number, source=b"orders-outbox": order(headers=[(b"hapax-source", source), (b"hapax-sequence", number)])
    yield "sequence", SCOPE, stamped(b"4711"), [("sequence",)], None
    yield "sequence, as 8 bytes", SCOPE, stamped(struct.pack(">Q", 4711)), [("sequence",)], None
    yield "sequence, the first", SCOPE, stamped(b"0"), [("sequence",)], None
    yield "sequence, the last", SCOPE, stamped(b"18446744073709551615"), [("sequence",)], None
    yield "sequence, 8 digits", SCOPE, stamped(b"12345678"), [("sequence",)], None
    yield "sequence, another source", SCOPE, stamped(b"4711", b"\x00orders"), [("sequence",)], None
    yield ("sequence, other headers", SCOPE, order(headers=[(b"outbox", b"orders-outbox"), (b"row", b"4712")]),
           [("sequence", b"outbox", b"row")], None)
    yield "sequence, across topics", {**SCOPE, "across": True}, stamped(b"4711"), [("sequence",)], None
    yield "and_then", SCOPE, order(headers=[(b"event", b"a1")]), [("position",), ("header", b"event"), ("and_then",)], None
    for kind in ("sha256", "blake3", "md5"):
        yield "digest, " + kind, SCOPE, order(), [("digest", kind, "payload")], None
        yield "digest of parts, " + kind, SCOPE, order(headers=[(b"type", b"paid")]), [("digest", kind, "payload", "key", "header:type")], None
    yield "digest, parts the other way round", SCOPE, order(), [("digest", "sha256", "key", "payload")], None
    first, second = blocks()
    yield "digest, md5, first of a collision", SCOPE, order(payload=first), [("digest", "md5", "payload")], None
    yield "digest, md5, second of a collision", SCOPE, order(payload=second), [("digest", "md5", "payload")], None
    yield "text", SCOPE, {"payload": b"body"}, [("text", b"order-1")], None
    yield "text, not ASCII", SCOPE, {"payload": b"body"}, [("text", "日本\0".encode())], None
    yield "bytes", SCOPE, {"payload": b"body"}, [("bytes", b"order-1")], None
    for number in (0, 1, -1, 2**64 - 1, -(2**127), 2**127 - 1):
        yield f"integer {number}", SCOPE, {"payload": b"body"}, [("integer", str(number).encode())], None
    yield "and", SCOPE, order(), [header, ("record_key",), ("and",)], None
    yield "and, three", SCOPE, order(), [header, ("record_key",), ("and",), ("position",), ("and",)], None
    yield "and of texts", SCOPE, order(), [("text", b"x:y"), ("text", b"z"), ("and",)], None
    yield "and of texts, split otherwise", SCOPE, order(), [("text", b"x"), ("text", b"y:z"), ("and",)], None
    yield "or, first", SCOPE, order(), [header, ("digest", "sha256", "payload"), ("or",)], None
    yield "or, second", SCOPE, order(headers=[]), [header, ("digest", "sha256", "payload"), ("or",)], None
    yield "or, first is null", SCOPE, order(headers=[(b"message-id", None)]), [header, ("record_key",), ("or",)], None
    yield "or, first is empty", SCOPE, order(headers=[(b"message-id", b"")]), [header, ("record_key",), ("or",)], None
    yield "or, half of an and", SCOPE, order(), [header, ("header", b"region"), ("and",), ("record_key",), ("or",)], None
    tombstone = order()
    del tombstone["payload"]
    yield "fingerprint of null", SCOPE, tombstone, [header], None
    yield "fingerprint of null, secret", {**SCOPE, "secret": pattern(16)}, tombstone, [header], None
    for size in (0, 1, 63, 64, 65, 200, 1023, 1024, 1025, 2048, 2049, 3072, 5121, 31745):
        yield f"fingerprint of {size} bytes", SCOPE, order(payload=pattern(size)), [header], None
    yield "fingerprint, secret", {**SCOPE, "secret": pattern(16)}, order(), [header], None
    yield "fingerprint of nothing", SCOPE, order(), [header], (b"nothing",)
    typed = order(headers=[(b"message-id", UUID), (b"type", b"paid")])
    yield "fingerprint with a header", SCOPE, typed, [header], (b"payload", b"type")
    yield "fingerprint with a missing header", SCOPE, order(), [header], (b"payload", b"type")
    yield "fingerprint with an empty header", SCOPE, order(headers=[(b"message-id", UUID), (b"type", b"")]), [header], (b"payload", b"type")
    yield "fingerprint of a header", SCOPE, typed, [header], (b"nothing", b"type")
    yield "fingerprint of null with two headers", SCOPE, {**tombstone, "headers": typed["headers"]}, [header], (b"payload", b"type", b"message-id")
    yield "fingerprint with a header, secret", {**SCOPE, "secret": pattern(16)}, typed, [header], (b"payload", b"type")


def escape(value):
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02x}" for byte in value) or "%"


def text_of(value):
    """A pattern of more than 64 bytes is written as its size."""
    return f"%pattern {len(value)}" if len(value) > 64 and value == pattern(len(value)) else escape(value)


def render():
    names = set()
    lines = ["# Made by oracle.py beside this file. Add vectors, never change one: stores out there hold these keys.",
             "# Words are escaped: %xx is a byte, a lone % is an empty word, `%pattern n` is n bytes, each its place mod 251."]
    for name, scope, message, steps, covers in vectors():
        assert name not in names
        names.add(name)
        lines += ["", f"vector {name}", f"group {escape(scope['group'])}", f"handler {escape(scope['handler'])}"]
        for word in ("tenant", "secret"):
            if word in scope:
                lines.append(f"{word} {text_of(scope[word])}")
        if scope.get("across"):
            lines.append("across")
        if "topic" in message:
            lines.append(f"topic {escape(message['topic'])}")
        if "at" in message:
            lines.append("at {} {}".format(*message["at"]))
        for word in ("key", "payload"):
            if word in message:
                lines.append(f"{word} {text_of(message[word])}")
        for own, value in message.get("headers", []):
            lines.append(f"header {escape(own)} {escape(value)}" if value is not None else f"null_header {escape(own)}")
        for kind, *rest in steps:
            lines.append(" ".join(["find", kind, *(word if isinstance(word, str) else escape(word) for word in rest)]))
        if covers:
            lines.append(" ".join(["covers", *map(escape, covers)]))
        whole = identity(steps, message)
        lines += [f"= encoded {whole.hex()}", f"= key {key(scope, message, whole).hex()}",
                  f"= fingerprint {fingerprint(scope, covers or (b'payload',), message).hex()}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    check_blake3()
    if sys.argv[1:] == ["--check"]:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "vectors.txt"), encoding="ascii") as committed:
            sys.exit(0 if committed.read() == render() else "vectors.txt differs from what oracle.py computes")
    sys.stdout.write(render())
