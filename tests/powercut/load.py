"""The clients: each has a part of the store to itself, and notes what it asked for, and when the answer came."""

from __future__ import annotations

import base64
import random
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tests.daemon.client import Client
from tests.daemon.process import Daemon

KEYS: Final = 30  # of a client: few enough that most writes find something there
UNDECIDED: Final = {"outcome_unknown", "shutting_down", "unavailable", "not_enough_shards", "busy"}  # the errors that a kill may leave

State = Any  # digests by key, or those of a log's entries in order


class Wrong(Exception):
    """What the daemon said or has is not what it may be."""


@dataclass
class Step:
    """A call, and what the client's part is with it. Positions are those of the disks' journal; None: not known, or never."""

    method: str
    state: State
    begun: int
    answered: int | None = None
    undone: int | None = None  # seen not to have happened


@dataclass
class History:
    """The steps of one client, in order."""

    steps: list[Step] = field(default_factory=list)

    def allowed(self, position: int) -> list[State]:
        """What the part may be after a power cut there: as it was answered last, or as a call under way makes it."""
        answered = max((at for at, step in enumerate(self.steps) if step.answered is not None and step.answered <= position), default=0)
        states = [self.steps[answered].state]
        for step in self.steps[answered + 1 :]:
            if step.begun <= position and (step.undone is None or step.undone >= position):
                states.append(step.state)
            if step.undone is None:
                break
        return states


@dataclass(frozen=True)
class Part:
    """What is a client's own: `plan` says what to do next (method, parameters, what the part is then), `look` what it is."""

    name: str
    plan: Callable[[random.Random, State], tuple[str, dict[str, Any], State] | None]
    look: Callable[[Client], State]


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def objects(name: str, scratch: Path) -> Part:
    """Objects of all sizes, written, replaced, renamed, copied, deleted."""

    def plan(dice: random.Random, state: Mapping[str, str]) -> tuple[str, dict[str, Any], State] | None:
        key, other = f"{name}/{dice.randrange(KEYS)}", f"{name}/{dice.randrange(KEYS)}"
        what = dice.choices(["small", "large", "file", "delete", "rename", "copy"], [60, 5, 3, 14, 8, 6])[0]
        if what in ("small", "large"):
            size = dice.choice([0, 1, 4096, dice.randrange(20_000)]) if what == "small" else dice.randrange(70_000, 2_500_000)
            data = dice.randbytes(size)
            return "object.write", {"key": key, "value_b64": _base64(data)}, {**state, key: digest(data)}
        if what == "file":
            data = dice.randbytes(dice.randrange(1_000_000, 6_000_000))
            path = scratch / name
            path.write_bytes(data)
            return "object.write_file", {"key": key, "path": str(path)}, {**state, key: digest(data)}
        if key not in state or key == other:
            return None
        left = {each: value for each, value in state.items() if each != key}
        if what == "delete":
            return "object.delete", {"key": key}, left
        return f"object.{what}", {"key": key, "new_key": other}, {**(left if what == "rename" else state), other: state[key]}

    def look(client: Client) -> State:
        keys = [item["key"] for item in client.result("object.list", prefix=f"{name}/", limit=2 * KEYS)["items"]]
        return {key: digest(client.read(key)) for key in keys}

    return Part(name, plan, look)


def names(name: str) -> Part:
    """Names, set and deleted."""

    def plan(dice: random.Random, state: Mapping[str, str]) -> tuple[str, dict[str, Any], State]:
        key, data = f"{name}/{dice.randrange(KEYS)}", dice.randbytes(dice.randrange(200))
        if key in state and dice.random() < 0.2:
            return "ns.delete", {"name": key}, {each: value for each, value in state.items() if each != key}
        return "ns.update", {"name": key, "value_b64": _base64(data)}, {**state, key: digest(data)}

    def look(client: Client) -> State:
        found = [item["name"] for item in client.result("ns.list", prefix=f"{name}/", limit=2 * KEYS)["items"]]
        return {key: digest(base64.b64decode(client.result("ns.fetch", name=key)["value_b64"])) for key in found}

    return Part(name, plan, look)


def entries(name: str) -> Part:
    """A log, appended to."""

    def plan(dice: random.Random, state: list[str]) -> tuple[str, dict[str, Any], State]:
        data = dice.randbytes(dice.randrange(1, 3000))
        return "log.append", {"log": name, "value_b64": _base64(data)}, [*state, digest(data)]

    def look(client: Client) -> State:
        found: list[str] = []
        while page := client.result("log.read", log=name, since_seq=len(found), values=True, limit=200)["entries"]:
            found += [digest(base64.b64decode(entry["value_b64"])) for entry in page]
        return found

    return Part(name, plan, look)


def parts(scratch: Path) -> list[Part]:
    return [*(objects(f"objects{number}", scratch) for number in range(3)), names("names"), entries("log0"), entries("log1")]


class Load:
    """Every part's client in a thread of its own, and what happens to the daemon meanwhile."""

    def __init__(self, daemon: Daemon, scratch: Path, seed: int, now: Callable[[], int]) -> None:
        self._daemon = daemon
        self._seed = seed
        self._now = now
        self._stop = threading.Event()
        self._faults: list[str] = []
        self.parts = parts(scratch)
        self.histories = {part.name: History() for part in self.parts}
        self.weakened: list[tuple[int, int]] = []  # from where to where on the store lacked a shard, or had bad shares

    def run(self, seconds: float) -> None:
        """Wrong if an answer is none that may come, or what is there after a kill is neither old nor new."""
        with self._daemon.client() as client:
            for part in self.parts:
                if part.name.startswith("log"):
                    client.result("log.create", log=part.name, page_size=4)
                self.histories[part.name].steps.append(Step("begin", part.look(client), self._now(), self._now()))
        threads = [threading.Thread(target=self._guarded, args=(self._work, part)) for part in self.parts]
        house = threading.Thread(target=self._guarded, args=(self._keep_house,))
        for thread in (*threads, house):
            thread.start()
        self._stop.wait(seconds)
        self._stop.set()
        for thread in (*threads, house):
            thread.join()
        self._daemon.kill()
        if self._faults:
            raise Wrong("\n".join(self._faults))

    def _guarded(self, work: Callable[..., None], *given: Part) -> None:
        try:
            work(*given)
        except Exception as error:
            self._faults.append(f"{work.__name__} {[part.name for part in given]}: {type(error).__name__}: {error}")
            self._stop.set()

    def _connected(self) -> Client | None:
        """A client of the daemon, once it is there again."""
        while not self._stop.wait(0.02):
            try:
                return self._daemon.client()
            except OSError:
                continue
        return None

    def _work(self, part: Part) -> None:
        dice = random.Random(f"{self._seed} {part.name}")
        steps = self.histories[part.name].steps
        state = steps[0].state
        client = self._connected()
        while client is not None and not self._stop.is_set():
            planned = part.plan(dice, state)
            if planned is None:
                continue
            method, params, after = planned
            steps.append(step := Step(method, after, self._now()))
            try:
                reply = client.call(method, params)
            except (OSError, EOFError):
                reply = {"error": {"data": {"type": "outcome_unknown"}}}
            if "error" not in reply:
                step.answered, state = self._now(), after
                continue
            if reply["error"]["data"]["type"] not in UNDECIDED:
                raise Wrong(f"{method}: {reply['error']}")
            client.close()
            client = self._resolved(part, step, state)
            state = after if step.answered is not None else state
        if client is not None:
            client.close()

    def _resolved(self, part: Part, step: Step, before: State) -> Client | None:
        """Whether a call that was not answered has happened; the client to go on with."""
        while (client := self._connected()) is not None:
            try:
                found = part.look(client)
            except (OSError, EOFError, AssertionError):
                client.close()  # killed once more, or stopping
                continue
            if found == step.state:
                step.answered = self._now()
            elif found == before:
                step.undone = self._now()
            else:
                raise Wrong(f"after {step.method} without an answer it is neither as before nor as after")
            return client
        return None

    # --- What happens meanwhile ---

    def _keep_house(self) -> None:
        dice = random.Random(f"{self._seed} house")
        happenings = [self._kill, self._terminate, self._collect, self._scrub, self._rotate, self._replace, self._damage]
        while not self._stop.wait(dice.uniform(0.3, 2.5)):
            dice.choices(happenings, [4, 1, 2, 1, 0.5, 0.7, 0.7])[0](dice)

    def _kill(self, dice: random.Random) -> None:
        self._daemon.restart()

    def _terminate(self, dice: random.Random) -> None:
        self._daemon.stop()
        self._daemon.start()

    def _ask(self, method: str, **params: Any) -> Any:
        with self._daemon.client() as client:
            return client.result(method, **params)

    def _collect(self, dice: random.Random) -> None:
        self._ask("health.collect")

    def _scrub(self, dice: random.Random) -> None:
        self._ask("health.scrub", action="start", wait=True)

    def _rotate(self, dice: random.Random) -> None:
        self._ask("key.rotate")

    def _shard(self, dice: random.Random) -> tuple[str, Path]:
        shard = dice.choice(self._ask("shard.list")["shards"])
        return shard["id"], Path(shard["url"].removeprefix("file://"))

    def _replace(self, dice: random.Random) -> None:
        """A shard is lost while the daemon is away."""
        shard, root = self._shard(dice)
        begun = self._now()
        self._daemon.kill()
        shutil.rmtree(root)
        self._daemon.start()
        self._ask("shard.replace", shard=shard)
        self.weakened.append((begun, self._now()))

    def _damage(self, dice: random.Random) -> None:
        """Bytes of a shard change."""
        _, root = self._shard(dice)
        files = [path for path in (*root.glob("log/*"), *root.glob("shares/*/*")) if path.stat().st_size > 64]
        begun = self._now()
        with dice.choice(files).open("r+b") as file:
            file.seek(dice.randrange(64, file.seek(0, 2)))
            file.write(b"damage")
        self._ask("health.repair_all")
        self.weakened.append((begun, self._now()))
