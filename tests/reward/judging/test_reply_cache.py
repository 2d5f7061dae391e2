"""Replies on disk: found again by any process, after any end, and by nothing else than all that decides them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saerl_lightning.reward.judging.reply import Reply
from saerl_lightning.reward.judging.reply_cache import ReplyCache, key_of

ROOT = Path(__file__).parents[3]
TEXT = 'Zoë says "10",\n\0 \ud800 and {}'


def test_what_is_kept_is_found_by_this_process_and_by_the_next(tmp_path):
    cache = ReplyCache(tmp_path / "new" / "folder")
    assert cache.get("a") is None
    cache.add("a", Reply(TEXT, cut=True))
    cache.add("b", Reply(""))
    for found in (cache, ReplyCache(cache.folder)):
        assert found.get("a") == Reply(TEXT, cut=True) and found.get("b") == Reply("") and found.get("c") is None
    cache.close()
    cache.add("c", Reply("c"))
    assert [cache.get(key) for key in "ac"] == [Reply(TEXT, cut=True), Reply("c")]
    assert len(list(cache.folder.iterdir())) == 2, "a file for each time it was open"
    cache.close()


@pytest.mark.parametrize("cut_at", range(1, 40, 7))
def test_a_line_that_was_never_finished_is_no_reply(tmp_path, cut_at):
    cache = ReplyCache(tmp_path)
    for key in "abc":
        cache.add(key, Reply(f"reply {key}"))
    cache.close()
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-cut_at])
    assert [ReplyCache(tmp_path).get(key) for key in "abc"] == [Reply("reply a"), Reply("reply b"), None]


def test_junk_in_the_folder_does_no_harm(tmp_path):
    cache = ReplyCache(tmp_path)
    cache.add("a", Reply("kept"))
    cache.close()
    junk = [b"\0" * 100, b"[" * 10_000, b"[1]", b'{"key": "b", "text": 3, "cut": false}', b'{"key": "b"}', b"\xff\xfe"]
    (tmp_path / "junk.jsonl").write_bytes(b"\n".join(junk) + b"\n")
    assert [ReplyCache(tmp_path).get(key) for key in "ab"] == [Reply("kept"), None]


def test_a_file_that_vanishes_or_changes_is_not_trusted(tmp_path):
    cache = ReplyCache(tmp_path)
    cache.add("a", Reply("kept"))
    cache.close()
    assert cache.get("a") == Reply("kept")
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text().replace('"a"', '"z"'))
    assert cache.get("a") is None
    file.unlink()
    assert cache.get("a") is None


WRITER = """
import itertools, sys
from pathlib import Path
from saerl_lightning.reward.judging.reply import Reply
from saerl_lightning.reward.judging.reply_cache import ReplyCache
cache = ReplyCache(Path(sys.argv[1]))
for i in itertools.count():
    cache.add(f"{sys.argv[2]}-{i}", Reply(f"{sys.argv[2]} {i} " + "x" * 3000))
    print(i, flush=True)
"""


def test_two_processes_that_are_killed_as_they_write_lose_at_most_a_line_each(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "shared")]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, env=environment, text=True) for name in "pq"]
    for writer in writers:
        while writer.stdout.readline() != "50\n":
            pass
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    cache = ReplyCache(tmp_path / "shared")
    for name, writer in zip("pq", writers, strict=True):
        said = [line for line in writer.stdout if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
        last = int(said[-1]) if said else 50
        for i in range(last + 1):
            assert cache.get(f"{name}-{i}") == Reply(f"{name} {i} " + "x" * 3000)
        assert cache.get(f"{name}-{last + 2}") is None


def test_a_key_holds_all_that_decides_a_reply():
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "temperature": 0.0, "seed": 0}
    changed = [{**body, name: value} for name, value in {"model": "n", "messages": [], "temperature": 1.0}.items()]
    changed += [{**body, "top_p": 0.5}, {name: body[name] for name in ("model", "messages", "temperature")}]
    keys = [key_of("http://a", body), key_of("http://b", body), *(key_of("http://a", each) for each in changed)]
    assert len(set(keys)) == len(keys)
    assert key_of("http://a", dict(reversed(body.items()))) == keys[0]


def test_no_question_and_no_key_is_written(tmp_path):
    cache = ReplyCache(tmp_path)
    cache.add("digest", Reply("Score: 5"))
    cache.close()
    [file] = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {"key": "digest", "text": "Score: 5", "cut": False}
