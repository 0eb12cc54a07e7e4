"""Ways of damaging a file; each is a small function that changes a file in place.

A mutation is *fatal* if no program could make sense of the result, so that a command that needs the file must refuse
it. Otherwise the file may still be valid, and a command may accept it.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Change = Callable[[Path, random.Random], None]

TEXTS = (
    "", " ", "\n", "\0", "a\nb\r\n", "\udce9", "é\u202e\u0000x", "../../../etc/passwd", "/dev/null", "/dev/zero", "~",
    "<script>alert(1)</script>", "%s%n{0}{x}", "a: b", "a #b", "[1", "{a: b}", "!!python/object:os.system x", "&a *a",
    "nan", "hf:", "hf:a/b", "-1", "--help", "$(id)", "no/such/file", "x" * 300, "x" * 5000, "scenes", "null",
)  # fmt: skip
"""Texts that have broken programs before."""
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 0.5, 1e308, 1e-320, -0.0, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**9, 10**30, 10**400,
    math.nan, math.inf, -math.inf, True, False,
)  # fmt: skip
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 5135149760\n"
)
PAGE = "<!DOCTYPE html><html><head><title>404</title></head><body>not found</body></html>\n"


@dataclass(frozen=True)
class Mutation:
    """A change to a file, and whether it is fatal."""

    change: Change
    fatal: bool = False


# --- any file ---------------------------------------------------------------------------------------------------------


def truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, max(2, len(content) // 2))])


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def flip_bits(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"\xff\xfe\xc0" + rng.randbytes(rng.choice((1, 100, 5000))))


def pointer(path: Path, rng: random.Random) -> None:
    path.write_text(POINTER, encoding="utf-8")


def web_page(path: Path, rng: random.Random) -> None:
    path.write_text(PAGE, encoding="utf-8")


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "x").write_text("x", encoding="utf-8")


def dangling_link(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def loop_link(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def to_null_device(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def swap(path: Path, rng: random.Random) -> None:
    """Replace the file by another one of the same folder tree."""
    others = [p for p in sorted(path.parent.parent.rglob("*")) if p.is_file() and p.suffix != path.suffix]
    if not others:
        empty(path, rng)
        return
    shutil.copyfile(rng.choice(others), path)


def utf16(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes().decode("utf-8", "replace").encode("utf-16"))


def insert_bytes(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    piece = rng.choice(
        (b"\0", b"\xef\xbb\xbf", b"\xff", b"\r", b"\xed\xa0\x80", b"\x1b[31m", b'"', b"\t", b"\xe2\x80\xa8")
    )
    path.write_bytes(content[:at] + piece + content[at:])


def repeat(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


FILE = {
    "truncated": Mutation(truncate, fatal=True),
    "emptied": Mutation(empty, fatal=True),
    "bits-flipped": Mutation(flip_bits),
    "noise": Mutation(noise, fatal=True),
    "lfs-pointer": Mutation(pointer, fatal=True),
    "web-page": Mutation(web_page, fatal=True),
    "removed": Mutation(remove, fatal=True),
    "a-folder": Mutation(folder, fatal=True),
    "dangling-link": Mutation(dangling_link, fatal=True),
    "loop-link": Mutation(loop_link, fatal=True),
    "null-device": Mutation(to_null_device, fatal=True),
    "swapped": Mutation(swap),
    "bytes-inserted": Mutation(insert_bytes),
    "utf-16": Mutation(utf16),
    "twice": Mutation(repeat),
}

# --- trees of values: JSON and YAML -----------------------------------------------------------------------------------

Tree = Any
Place = tuple[MutableMapping[str, Any] | MutableSequence[Any], Any]


def places(tree: Tree) -> Iterator[Place]:
    """Yield every (container, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from places(value)


def _edit(path: Path, change: Callable[[Tree], Tree]) -> None:
    """Read a JSON or YAML file, change its tree, and write it in the same format."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".yaml", ".yml"):
        tree = change(yaml.safe_load(text))
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10**6)
    else:
        text = json.dumps(change(json.loads(text)), indent=1)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def set_anything(path: Path, rng: random.Random) -> None:
    """Give a key a value of any kind."""

    def change(tree: Tree) -> Tree:
        holder, key = rng.choice(list(places(tree)))
        holder[key] = hostile(rng)
        return tree

    _edit(path, change)


def set_number(path: Path, rng: random.Random) -> None:
    """Replace the number of a key by another number."""

    def change(tree: Tree) -> Tree:
        numbers = [(h, k) for h, k in places(tree) if isinstance(h[k], int | float)]
        if numbers:
            holder, key = rng.choice(numbers)
            holder[key] = rng.choice(NUMBERS)
        return tree

    _edit(path, change)


def delete_key(path: Path, rng: random.Random) -> None:
    def change(tree: Tree) -> Tree:
        holder, key = rng.choice(list(places(tree)))
        del holder[key]
        return tree

    _edit(path, change)


def number_to_word(path: Path, rng: random.Random) -> None:
    """Put a word in place of a number; this is fatal if every number is read."""

    def change(tree: Tree) -> Tree:
        numbers = [(h, k) for h, k in places(tree) if type(h[k]) in (int, float)]
        holder, key = rng.choice(numbers)
        holder[key] = rng.choice(("many", [[]], {"a": {}}))
        return tree

    _edit(path, change)


def unknown_key(path: Path, rng: random.Random) -> None:
    def change(tree: Tree) -> Tree:
        tree[rng.choice(("nonsense", "", "a.b", "<b>", "x" * 200))] = 1
        return tree

    _edit(path, change)


def not_a_mapping(path: Path, rng: random.Random) -> None:
    _edit(path, lambda tree: rng.choice(([tree], 5, "text", [], [[1, 2], [3]], True)))


def nested_value(path: Path, rng: random.Random) -> None:
    """Nest lists some hundred or some ten thousand levels deep."""
    depth = rng.choice((200, 20_000))
    text = path.read_text(encoding="utf-8").rstrip()
    deep = "[" * depth + "]" * depth
    path.write_text(f"{text}\nnonsense: {deep}\n" if path.suffix == ".yaml" else deep, encoding="utf-8")


def huge_integer(path: Path, rng: random.Random) -> None:
    """Write a number of a hundred thousand digits."""
    digits = "9" * 100_000
    text = path.read_text(encoding="utf-8").rstrip()
    path.write_text(f"{text}\nversion2: {digits}\n" if path.suffix == ".yaml" else digits, encoding="utf-8")


def hostile(rng: random.Random) -> Any:
    """Return a value of any kind."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return [hostile(rng) for _ in range(rng.choice((0, 1, 2, 5)))]
    if kind == 3:
        return {str(rng.choice(TEXTS)): hostile(rng) for _ in range(rng.choice((0, 1, 3)))}
    return rng.choice((None, [0] * 100_000, list(range(2000)), [[[[[]]]]], "x" * 100_000))


TREE = {
    "any-value": Mutation(set_anything),
    "another-number": Mutation(set_number),
    "key-deleted": Mutation(delete_key),
    "word-for-number": Mutation(number_to_word),
    "unknown-key": Mutation(unknown_key),
    "no-mapping": Mutation(not_a_mapping, fatal=True),
    "nested": Mutation(nested_value, fatal=True),
    "huge-integer": Mutation(huge_integer, fatal=True),
}
OURS = {name: Mutation(TREE[name].change, fatal=True) for name in ("word-for-number", "unknown-key")}
"""Mutations that are fatal in files of which RMD knows every key."""
JSON = {**FILE, **TREE, "twice": Mutation(repeat, fatal=True), "utf-16": Mutation(utf16, fatal=True)}

# --- recipes ----------------------------------------------------------------------------------------------------------


def _append(text: str) -> Change:
    def change(path: Path, rng: random.Random) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)

    return change


def alias_bomb(path: Path, rng: random.Random) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    _append("\n".join(lines) + "\n")(path, rng)


def extends_chain(path: Path, rng: random.Random) -> None:
    """Write two thousand files, each extending the next."""
    text = path.read_text(encoding="utf-8")
    for i in range(2000):
        path.with_name(f"c{i}.yaml").write_text(f"extends: ./c{i + 1}.yaml\n", encoding="utf-8")
    path.with_name("c2000.yaml").write_text(text, encoding="utf-8")
    path.write_text("extends: ./c0.yaml\n", encoding="utf-8")


def extends_itself(path: Path, rng: random.Random) -> None:
    path.write_text(f"extends: ./{path.name}\n", encoding="utf-8")


def extends_anything(path: Path, rng: random.Random) -> None:
    value = rng.choice((*TEXTS, 5, ["a"], {"a": 1}, ".", "..", "./", "/dev/full", "x.yaml"))
    path.write_text(yaml.safe_dump({"extends": value}), encoding="utf-8", errors="surrogatepass")


def long_comment(path: Path, rng: random.Random) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(("# " + "x" * 98 + "\n") * 40_000)


RECIPE = {
    **FILE, **TREE, **OURS,
    "swapped": Mutation(swap, fatal=True),
    "twice": Mutation(repeat, fatal=True),
    "truncated": Mutation(truncate),
    "utf-16": Mutation(utf16),
    "alias-bomb": Mutation(alias_bomb, fatal=True),
    "extends-chain": Mutation(extends_chain),
    "extends-itself": Mutation(extends_itself, fatal=True),
    "extends-anything": Mutation(extends_anything),
    "long-comment": Mutation(long_comment),
    "python-tag": Mutation(_append("evil: !!python/object/apply:os.system [id]\n"), fatal=True),
    "own-tag": Mutation(_append("evil: !x 5\n"), fatal=True),
    "list-as-key": Mutation(_append("? [1, 2]\n: 3\n"), fatal=True),
    "number-as-key": Mutation(_append("5: 3\n"), fatal=True),
    "two-documents": Mutation(_append("---\nname: b\n"), fatal=True),
    "key-twice": Mutation(_append("name: b\n"), fatal=True),
    "tab": Mutation(_append("evil:\n\tx: 1\n"), fatal=True),
    "merge-key": Mutation(_append("<<: [5]\n"), fatal=True),
    "recursive-alias": Mutation(_append("evil: &e [*e]\n"), fatal=True),
    "date": Mutation(_append("evil: 2001-99-99\n"), fatal=True),
    "sexagesimal": Mutation(_append("evil: 190:20:30:99999999999\n"), fatal=True),
}  # fmt: skip


def lenient(mutations: dict[str, Mutation]) -> dict[str, Mutation]:
    """Return the same mutations as not fatal, for files that a command can do without."""
    return {name: Mutation(mutation.change) for name, mutation in mutations.items()}


def fatal_only(mutations: dict[str, Mutation]) -> dict[str, Mutation]:
    """Return the fatal mutations, for commands that would compute for long if they accepted their input."""
    return {name: mutation for name, mutation in mutations.items() if mutation.fatal}


TEXT = {**lenient(FILE), **{name: FILE[name] for name in ("removed", "a-folder", "emptied", "noise", "loop-link")}}
"""Mutations of text files, of which any content is valid."""
