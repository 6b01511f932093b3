"""The cluster file (`configs/cluster.yaml`): which nodes there are, where Redis is, and what all of them must agree on.

The same file lies on every node. What one machine is like besides (its home folder) comes from its environment.
"""

import hashlib
import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.failures import LifecycleError

NODE_LABEL = "aurora/node"
REDIS_PORT = 6379
SENTINEL_PORT = 26379
CONTROL_REDIS_PORT = 6380

NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$"


def _ipv4(value: str) -> str:
    ipaddress.IPv4Address(value)
    return value


def _without_its_name(labels: dict[str, str]) -> dict[str, str]:
    if NODE_LABEL in labels:
        raise ValueError(f"{NODE_LABEL} is the node's name and comes by itself: take it out")
    return labels


Address = Annotated[str, AfterValidator(_ipv4)]
Labels = Annotated[dict[str, str], AfterValidator(_without_its_name)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSpec(_Part):
    """One node: where it is, what it has, and which of the cluster's Redis processes live on it."""

    address: Address = Field(description="IPv4 address at which the other nodes reach it.")
    labels: Labels = Field({}, description="Ray labels, for placing replicas; `aurora/node` comes by itself.")
    gpus: Literal["auto"] | int = Field("auto", description="How many GPUs Ray may give away; auto: those found.")
    cpus: Literal["auto"] | int = Field("auto", description="How many CPUs Ray may give away; auto: those found.")
    redis: Literal["primary", "replica"] | None = Field(None, description="Its part in the chat's Redis at the very first.")
    sentinel: bool = Field(False, description="Whether a Sentinel of the chat's Redis runs here.")
    control_redis: bool = Field(False, description="Whether the Redis of Ray's control store runs here.")


class ChatRedis(_Part):
    """The chat's Redis."""

    url: str = Field("", description="A Redis of your own (redis:// or sentinel://); empty: the one on these nodes.")
    master: str = Field("aurora", pattern=NAME, description="Its name at the Sentinels.")
    durability_replicas: int = Field(
        1, ge=0, description="On how many replicas a message or an answer must be before it is acknowledged."
    )


class RayControl(_Part):
    """Ray's control plane: where it is and how it is guarded."""

    redis: str = Field("", description="HOST:PORT of the Redis for Ray's own state, never the chat's; empty: on these nodes.")
    gcs_port: int = Field(6385, ge=1, le=65535, description="Port of Ray's control store on the head.")
    dashboard_port: int = Field(8265, ge=1, le=65535, description="Port of Ray's dashboard and Serve's REST API on the head.")
    token_file: Path | None = Field(None, description="File with the token that Ray asks for; the same content on every node.")


class ClusterFile(_Part):
    """A cluster, as its operator describes it."""

    name: str = Field(pattern=NAME, description="Name of the cluster: keeps its state apart from others' in the same Redis.")
    head: str = Field(description="Name of the node that is Ray's head.")
    nodes: dict[Annotated[str, Field(pattern=NAME)], NodeSpec] = Field(min_length=1, description="The nodes, by name.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the chat on every node.")
    serve_config: Path = Field(description="The Serve configuration to run.")
    redis: ChatRedis = Field(default_factory=lambda: ChatRedis.model_validate({}), description="The chat's Redis.")
    ray: RayControl = Field(default_factory=lambda: RayControl.model_validate({}), description="Ray's control plane.")

    @model_validator(mode="after")
    def _consistent(self) -> "ClusterFile":
        if self.head not in self.nodes:
            raise ValueError(f"the head {self.head!r} is not among the nodes")
        addresses = [node.address for node in self.nodes.values()]
        if len(set(addresses)) != len(addresses):
            raise ValueError("two nodes have the same address")
        if self.redis.url:
            if roles := [name for name, node in self.nodes.items() if node.redis or node.sentinel]:
                raise ValueError(
                    f"either redis.url or a Redis on the nodes: {', '.join(roles)} have `redis` or `sentinel` as well"
                )
        else:
            primaries = sum(node.redis == "primary" for node in self.nodes.values())
            if primaries != 1:
                raise ValueError("give redis.url, or let exactly one node be `redis: primary`")
            if sum(node.redis == "replica" for node in self.nodes.values()) < self.redis.durability_replicas:
                raise ValueError("redis.durability_replicas asks for more nodes with `redis: replica` than there are")
        if not self.ray.redis and sum(node.control_redis for node in self.nodes.values()) != 1:
            raise ValueError("give ray.redis, or let exactly one node have `control_redis: true`")
        return self

    @property
    def head_address(self) -> str:
        """Where the head is."""
        return self.nodes[self.head].address

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard and Serve's REST API, as the nodes reach them."""
        return f"http://{self.head_address}:{self.ray.dashboard_port}"

    @property
    def dashboard_headers(self) -> dict[str, str]:
        """The headers that Ray's dashboard asks for."""
        return {"Authorization": f"Bearer {self.token}"} if self.ray.token_file else {}

    @property
    def token(self) -> str:
        """The token that Ray asks for; empty for none.

        Raises:
            LifecycleError: its file is not there.
        """
        if self.ray.token_file is None:
            return ""
        try:
            return self.ray.token_file.read_text().strip()
        except OSError as error:
            advice = "make one with `openssl rand -hex 32` and copy it to every node"
            raise LifecycleError(f"Cannot read Ray's token in {self.ray.token_file} ({error.strerror}): {advice}.") from error

    @property
    def redis_url(self) -> str:
        """The chat's Redis, as every replica is told it."""
        if self.redis.url:
            return self.redis.url
        if sentinels := [node.address for node in self.nodes.values() if node.sentinel]:
            return f"sentinel://{','.join(f'{address}:{SENTINEL_PORT}' for address in sentinels)}/{self.redis.master}"
        return f"redis://{self.redis_primary.address}:{REDIS_PORT}/0"

    @property
    def redis_primary(self) -> NodeSpec:
        """The node on which the chat's Redis is primary when it is first set up."""
        return next(node for node in self.nodes.values() if node.redis == "primary")

    @property
    def control_redis(self) -> str:
        """HOST:PORT of the Redis in which Ray keeps its state."""
        if self.ray.redis:
            return self.ray.redis
        return f"{next(node.address for node in self.nodes.values() if node.control_redis)}:{CONTROL_REDIS_PORT}"

    def url(self, node: str) -> str:
        """Return the chat's address on a node."""
        return f"http://{self.nodes[node].address}:{self.port}"

    def agreed(self) -> dict[str, str]:
        """Return what all nodes must have alike, by the names that a person knows; secrets as digests."""
        return {
            "the head's address": self.head_address,
            "the chat's Redis (redis)": _without_secret(self.redis_url),
            "redis.durability_replicas": str(self.redis.durability_replicas),
            "Ray's control Redis (ray.redis)": self.control_redis,
            "ray.gcs_port": str(self.ray.gcs_port),
            "ray.dashboard_port": str(self.ray.dashboard_port),
            "the content of ray.token_file": _digest(self.token),
            "port": str(self.port),
        }


def load(path: Path) -> ClusterFile:
    """Return the cluster that `path` describes; relative paths in it are meant from its folder.

    Raises:
        LifecycleError: it cannot be read, or something in it is wrong: says what.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LifecycleError(f"Cannot read the cluster file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise LifecycleError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        cluster = ClusterFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LifecycleError(f"{path}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}.") from error
    return _anchored(cluster, path.absolute().parent)


def _anchored(cluster: ClusterFile, folder: Path) -> ClusterFile:
    token_file = cluster.ray.token_file
    ray = cluster.ray.model_copy(update={"token_file": folder / token_file} if token_file else {})
    update: dict[str, Any] = {"serve_config": folder / cluster.serve_config, "ray": ray}
    return cluster.model_copy(update=update)


def _without_secret(url: str) -> str:
    scheme, _, rest = url.partition("://")
    secret, at, place = rest.rpartition("@")
    return f"{scheme}://{_digest(secret) + at if at else ''}{place}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:12] if secret else "none"
