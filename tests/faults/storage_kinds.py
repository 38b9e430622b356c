"""Faults of the object store, produced by the proxy in front of a real one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from tests.faults import actions
from tests.faults.arena import IMPATIENT, Arena, BrokenPromiseError
from tests.faults.dataset import upload, write_archive
from tests.faults.proxy import Action, Rule

PUTS = {"latents": 11, "rejects": 11, "_shards": 4}
PLACES = ("photos/a.tar", "photos/loose", "table", *(f"table/{folder}" for folder in PUTS))
ALWAYS = 1_000_000


def under(arena: Arena, place: str) -> str:
    """Return a pattern for the requests of this schedule's bucket."""
    return f"{arena.bucket}/{place}"


def some_put(arena: Arena, action: Action, times: int = 1) -> tuple[Rule, str]:
    """Return a rule for a put that the seed selects, and its name."""
    folder = arena.rng.choice(list(PUTS))
    nth = arena.rng.randint(1, PUTS[folder])
    rule = Rule("PUT", under(arena, f"table/{folder}/"), action, nth - 1, times)
    return rule, f"put {nth} in {folder}/"


def must_have_struck(rule: Rule) -> None:
    """Raise if no request was broken: a run without a fault proves nothing."""
    if not rule.hit.is_set():
        raise BrokenPromiseError(f"no request was the one to break: {rule.method} {rule.path}")


def some_requests(arena: Arena, action: Action) -> tuple[Rule, str]:
    """Return a rule for one or two consecutive requests of any kind."""
    place = arena.rng.choice(
        [
            "photos/a.tar",
            "photos/loose",
            "table/latents/",
            "table/rejects/",
            "table/_shards",
            "table",
        ]
    )
    skip, times = arena.rng.randint(0, 3), arena.rng.randint(1, 2)
    if place == "photos/a.tar":
        skip %= 3  # it is requested three times, everything else more often
    rule = Rule(".*", under(arena, place), action, skip, times)
    return rule, f"{times} from {skip + 1} on {place}"


def hiccup(action: Action) -> Callable[[Arena], None]:
    """Break one or two requests: the run must succeed without a repetition."""

    def strike(arena: Arena) -> None:
        rule, when = some_requests(arena, action)
        with arena.world.proxy.breaking(rule):
            run = arena.light()
            rule.hit.wait(60)
            arena.struck(when)
            arena.finish(run)
        must_have_struck(rule)

    return strike


def outage(arena: Arena) -> None:
    """Break all requests from some point until the run has ended; then the store recovers."""
    action = arena.rng.choice([actions.error(500), actions.error(503), actions.reset_before])
    skip = arena.rng.randint(10, 120)
    rule = Rule(".*", under(arena, ""), action, skip, ALWAYS)
    with arena.world.proxy.breaking(rule):
        run = arena.light(environment=IMPATIENT)
        rule.hit.wait(60)
        arena.struck(f"all requests from {skip + 1} on")
        ended = arena.end(run)
    must_have_struck(rule)
    if ended.code == 0:
        raise BrokenPromiseError("the store was gone and the run says that it is done")
    if ended.code:
        arena.finish(arena.light())


def expired(arena: Arena) -> None:
    """Expire the credentials of the input or the output; the next run has new ones."""
    place = arena.rng.choice(["photos", "table"])
    name, uri = ("input", arena.input) if place == "photos" else ("output", arena.output)
    skip = arena.rng.randint(4, 8) if place == "photos" else arena.rng.randint(10, 60)
    rule = Rule(
        ".*", under(arena, f"{place}/"), actions.refusing(400, "ExpiredToken"), skip, ALWAYS
    )
    with arena.world.proxy.breaking(rule):
        run = arena.light()
        rule.hit.wait(60)
        arena.struck(f"from request {skip + 1} of {place}/ on")
        ended = arena.end(run)
    must_have_struck(rule)
    if ended.code != 1 or f"credentials expired for the {name} '{uri}'" not in ended.said:
        raise BrokenPromiseError(f"credentials expired, and the run said: {ended.said[-2000:]}")
    arena.finish(arena.light())


def stalled(arena: Arena) -> None:
    """Answer one request after the client's timeout of 15 s, or all of them slowly."""
    if arena.rng.random() < 0.5:
        rule, when = some_put(arena, actions.slow(17))
        when = f"17 s for {when}"
    else:
        rule = Rule(".*", under(arena, ""), actions.slow(0.1), 0, ALWAYS)
        when = "0.1 s more for each"
    with arena.world.proxy.breaking(rule):
        run = arena.light()
        rule.hit.wait(60)
        arena.struck(when)
        arena.finish(run)
    must_have_struck(rule)


def truncated_answers(arena: Arena) -> None:
    """Kill a run; truncate answers of the next one."""
    when = killed_at_a_put(arena)
    places = ["table/latents/", "table/_shards/", "table/_table", "photos/"]
    if when == f"SIGKILL after put {PUTS['_shards']} in _shards/":
        places.remove("photos/")  # every shard is committed, so none is read again
    place = arena.rng.choice(places)
    rule = Rule("GET", under(arena, place), actions.truncated, arena.rng.randint(0, 1), 2)
    with arena.world.proxy.breaking(rule):
        arena.finish(arena.light())
    must_have_struck(rule)
    arena.when = f"{when}, then 2 of {place}"


def killed_at_a_put(arena: Arena) -> str:
    """Kill a run before or after a put; return which."""
    started = threading.Event()
    pids: list[Callable[[], None]] = []

    def kill() -> None:
        started.wait(60)
        pids[0]()

    after = arena.rng.random() < 0.5
    rule, when = some_put(arena, actions.calling(kill, after=after))
    when = f"SIGKILL {'after' if after else 'before'} {when}"
    with arena.world.proxy.breaking(rule):
        run = arena.light()
        pids.append(lambda: run.signal(signal.SIGKILL))
        started.set()
        code = arena.end(run).code
    arena.struck(when)
    if code != -signal.SIGKILL:
        raise BrokenPromiseError(f"the run was to be killed and ended with {code}")
    return when


def kill_at_put(arena: Arena) -> None:
    """Kill a run while a put is in flight."""
    killed_at_a_put(arena)
    arena.finish(arena.light())


def late_put(arena: Arena) -> None:
    """Delay a put in the network until a second run has finished the table."""
    _late_put(arena, new_input=False)


def late_put_new_input(arena: Arena) -> None:
    """Do `late_put`, and change the input before the second run."""
    _late_put(arena, new_input=True)


def _late_put(arena: Arena, *, new_input: bool) -> None:
    release, arrived = threading.Event(), threading.Event()
    rule, when = some_put(arena, actions.hold(release, arrived))
    with arena.world.proxy.breaking(rule):
        first = arena.light()
        if not rule.hit.wait(120):
            raise BrokenPromiseError("the put to hold never came")
        arena.struck(when)
        first.signal(signal.SIGKILL)
        arena.end(first)
        if new_input:
            write_archive(arena.photos, "a", 17, edition=1)
            upload(arena.photos, arena.input)
        arena.finish(arena.light())
        release.set()
        if not arrived.wait(60):
            raise BrokenPromiseError("the held put was never answered")
    if new_input:
        arena.finish(arena.light())


def late_put_shorter(arena: Arena) -> None:
    """Delay a put until the table is finished with an archive that lacks this part."""
    _late_beyond(arena, lambda: shorten(arena))


def late_put_recut(arena: Arena) -> None:
    """Delay a put until the table is finished with larger parts, none of which has its number."""
    _late_beyond(arena, lambda: arena.recut_in(6))


def shorten(arena: Arena) -> None:
    """Shorten the archive of five parts to one or two."""
    write_archive(arena.photos, "a", 6, edition=1)
    if arena.bucket:
        upload(arena.photos, arena.input)


def _late_beyond(arena: Arena, change: Callable[[], None]) -> None:
    """Delay a put of the last two of five parts until the shard has fewer parts."""
    release, arrived = threading.Event(), threading.Event()
    name = f"{arena.rng.choice(['latents', 'rejects'])}/a-0000{arena.rng.choice([3, 4])}"
    rule = Rule("PUT", under(arena, f"table/{name}"), actions.hold(release, arrived))
    with arena.world.proxy.breaking(rule):
        first = arena.light()
        if not rule.hit.wait(120):
            raise BrokenPromiseError("the put to hold never came")
        arena.struck(f"put of {name}")
        first.signal(signal.SIGKILL)
        arena.end(first)
        change()
        arena.finish(arena.light())
        release.set()
        if not arrived.wait(60):
            raise BrokenPromiseError("the held put was never answered")
    arena.finish(arena.light())


def lists_late(arena: Arena) -> None:
    """Omit new objects from listings for a while: a killed run, then the next."""
    when = killed_at_a_put(arena)
    folder = arena.rng.choice(["latents", "rejects", "_shards"])
    times = arena.rng.randint(1, 4)
    rule = Rule(
        "GET",
        rf"{arena.bucket}/?\?.*list-type=2.*prefix=table/{folder}",
        actions.without_entries(f"table/{folder}/"),
        # A run with nothing to do lists the manifests twice, and the parts once.
        arena.rng.randint(0, 1) if folder == "_shards" else 0,
        times,
    )
    with arena.world.proxy.breaking(rule):
        arena.finish(arena.light())
    must_have_struck(rule)
    arena.when = f"{when}, {times} lists of {folder}"


def no_condition(arena: Arena) -> None:
    """Have no conditional put: ignore the condition, or answer 501."""
    ignores = arena.rng.random() < 0.5
    action = (
        actions.unconditional(arena.world.s3.pipe_file) if ignores else actions.refuse_condition
    )
    rule = Rule("PUT", under(arena, "table/"), action, 0, ALWAYS)
    with arena.world.proxy.breaking(rule):
        run = arena.light(environment={"FAULTS_PACE_S": "0.02"})
        second = arena.light(environment={"FAULTS_PACE_S": "0.02"})
        arena.struck("condition ignored" if ignores else "condition refused (501)")
        endings = [arena.end(run), arena.end(second)]
        if any(ended.code for ended in endings):
            arena.finish(arena.light())
    must_have_struck(rule)
