"""Random SFTJobs, grown from the CRD's own schema and then damaged: the same seed gives the same body.

A good half of them is valid or nearly so, or nothing behind the schema would ever be reached.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from ruamel.yaml import YAML

from fuzzing.jsonlike import WORDS, anything
from sftjob_operator.cluster.local.admission import sftjob_schema

Schema = dict[str, Any]
Manifest = dict[str, Any]
Path_ = tuple[str | int, ...]

TESTS = Path(__file__).resolve().parents[1]
UNION = re.compile(r"\(has\(self\.\w+\) \? 1 : 0\)( \+ \(has\(self\.\w+\) \? 1 : 0\))+ (==|<=) 1")
PLAUSIBLE = (
    "a", "bot", "models/base", "data/*.jsonl", "hf://acme/model", "hf://acme/model@0e9e39f249a1", "64Gi", "500m", "2",
    "nvidia.com/gpu", "registry.example/trainer:1", "NCCL_DEBUG", "sftjob.dev/operator", "example.com/other", "<|end|>",
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}', "q_proj", "AllLinear",
    "model.layers.*", "main", "SFTJOB_X", "2026-01-01T00:00:00Z", "ws",
)  # fmt: skip
POD_PARTS: dict[str, list[Any]] = {
    "tolerations": [{"operator": "Exists"}, {"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
    "affinity": [{"nodeAffinity": {}}, {"podAffinity": {"x": []}}],
    "volumes": [{"name": "extra", "emptyDir": {}}, {"name": "shm", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/"}}],
    "volumeMounts": [{"name": "extra", "mountPath": "/extra"}, {"name": "workspace", "mountPath": "/w"}],
    "securityContext": [{"runAsUser": 0}, {"fsGroup": 2000}, {"privileged": True}, {"capabilities": {"add": ["ALL"]}}],
}  # fmt: skip


def seeds() -> list[Manifest]:
    """Real SFTJobs, whose parts are exchanged."""
    paths = [
        *sorted((TESTS / "core" / "golden").glob("*/sftjob.yaml")),
        *sorted((TESTS.parent / "examples").glob("*.yaml")),
    ]
    loaded = (
        document for path in paths for document in YAML(typ="safe", pure=True).load_all(path.read_text())
    )
    return [document for document in loaded if document["kind"] == "SFTJob"]


class Bodies:
    """The generator; loading the seeds takes a moment."""

    def __init__(self) -> None:
        self._seeds = seeds()
        self._spec: Schema = sftjob_schema()["properties"]["spec"]

    def body(self, seed: int) -> Manifest:
        """An SFTJob as a person sends it."""
        random = Random(seed)
        spec = copy.deepcopy(random.choice(self._seeds)["spec"])
        for _ in range(random.choice((0, 1, 1, 2, 3, 6))):
            name = random.choice(sorted(self._spec["properties"]))
            spec[name] = self._grown(random, self._spec["properties"][name], name)
        if random.random() < 0.05:
            spec = self._grown(random, self._spec, "spec")
        body: Manifest = {
            "apiVersion": "sftjob.dev/v1alpha1",
            "kind": "SFTJob",
            "metadata": {
                "name": random.choice(("bot", "a" * 45, "b-2")),
                "namespace": "team",
                "generation": 1,
            },
            "spec": spec,
        }
        if random.random() < 0.1:
            body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
        for _ in range(random.choice((0, 0, 0, 1, 1, 2, 4))):
            self._damage(random, body)
        return body

    # ------------------------------------------------------------------ by the schema

    def _grown(self, random: Random, schema: Schema, name: str, depth: int = 0) -> Any:
        if "enum" in schema:
            return random.choice(schema["enum"])
        if name in POD_PARTS and schema.get("type") != "array":
            return copy.deepcopy(random.choice(POD_PARTS[name]))
        if schema.get("x-kubernetes-int-or-string"):
            return random.choice((0, 1, 8, "1", "4Gi", "500m", "1e3", "x", -1))
        grow = {"object": self._object, "array": self._array, "string": self._string}.get(
            schema.get("type", "")
        )
        if grow is not None:
            return grow(random, schema, name, depth)
        return (
            random.choice((True, False)) if schema.get("type") == "boolean" else self._number(random, schema)
        )

    def _object(self, random: Random, schema: Schema, name: str, depth: int) -> Any:
        if "properties" not in schema:
            below = schema.get("additionalProperties")
            if not isinstance(below, dict):
                return random.choice(
                    ({}, {"zero_optimization": {"stage": 2}}, {"train_batch_size": "auto"}, anything(random))
                )
            names = random.sample((*PLAUSIBLE, "cpu", "memory"), random.randrange(3))
            return {key: self._grown(random, below, key, depth + 1) for key in names}
        share = random.choice((0.05, 0.3, 0.7))
        required = schema.get("required", ())
        wanted = [key for key in schema["properties"] if key in required or random.random() < share]
        for union in _unions(schema):
            if random.random() < 0.95:
                chosen = random.choice(union)
                wanted = [key for key in wanted if key not in union] + [chosen]
        return {key: self._grown(random, schema["properties"][key], key, depth + 1) for key in wanted}

    def _array(self, random: Random, schema: Schema, name: str, depth: int) -> Any:
        least, most = schema.get("minItems", 0), schema.get("maxItems", 8)
        count = min(max(least, random.choice((0, 1, 1, 2, 3))), most)
        if random.random() < 0.02:
            count = most
        if name in POD_PARTS:
            return [copy.deepcopy(random.choice(POD_PARTS[name])) for _ in range(count)]
        return [self._grown(random, schema.get("items", {}), name, depth + 1) for _ in range(count)]

    def _string(self, random: Random, schema: Schema, name: str, depth: int) -> Any:
        pool = WORDS if random.random() < 0.1 else PLAUSIBLE
        pattern, most = schema.get("pattern", ""), schema.get("maxLength", 10**6)
        fitting = [word for word in pool if len(word) <= most and re.search(pattern, word)]
        return random.choice(fitting or pool)

    def _number(self, random: Random, schema: Schema) -> Any:
        low, high = schema.get("minimum", 0), schema.get("maximum", 1000)
        if schema.get("type") == "integer":
            return random.choice((low, low + 1, min(low + 7, high), high, random.randint(low, high)))
        return random.choice(
            (low, high, (low + high) / 2, min(2e-5, high), low + random.random() * (high - low))
        )

    # ------------------------------------------------------------------ damage

    def _damage(self, random: Random, body: Manifest) -> None:
        path = random.choice(list(_paths(body["spec"])) or [()])
        parent: Any = body
        for step in ("spec", *path)[:-1]:
            parent = parent[step]
        last = ("spec", *path)[-1]
        kind = random.randrange(5)
        if kind == 0 and isinstance(parent, dict):
            parent[random.choice((*WORDS, "unknownField"))] = anything(random)
        elif kind == 1 and isinstance(parent, dict) and path:
            del parent[last]
        elif kind == 2 and isinstance(parent[last], list):
            parent[last] = parent[last] * random.choice((2, 40))
        else:
            parent[last] = anything(random)


def _unions(schema: Schema) -> list[list[str]]:
    """Fields of which exactly, or at most, one may be set, read out of the schema's rules."""
    rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", ())]
    return [re.findall(r"has\(self\.(\w+)\)", rule) for rule in rules if UNION.fullmatch(rule)]


def _paths(value: Any, above: Path_ = ()) -> Iterator[Path_]:
    if isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*above, key)
            yield from _paths(below, (*above, key))
