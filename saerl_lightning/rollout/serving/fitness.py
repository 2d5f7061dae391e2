"""Checks whether a server is what a run needs, before anything is sampled, and says which command starts a right one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from saerl_lightning.errors import InputError
from saerl_lightning.rollout.serving.command import ADAPTER_ROUTES, ServerNeeds, ServerOptions, server_command
from saerl_lightning.rollout.serving.connection import LOAD_ADAPTERS, ServerFault, VLLMServer
from saerl_lightning.rollout.serving.fleet import ROUTE, Fleet
from saerl_lightning.rollout.serving.weights_version import Claim

LONGEST_S = 60.0  # a server that is well gives its settings in some seconds
# Entries of a model's configuration that a copy of it may have otherwise.
OF_THE_COPY = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}


def require_fit(fleet: Fleet, needs: ServerNeeds, options: ServerOptions) -> dict[VLLMServer, dict[str, Any]]:
    """Asks every server what it is, and notes the name of its model.

    Args:
        fleet: Servers that are asked.
        needs: What the run needs of them.
        options: Options of the command that is named where one is not fit.

    Returns:
        vLLM's settings of each server.

    Raises:
        InputError: for the first server that can't be used, with the command that starts a right one.
    """
    return {server: _examined(fleet, number, needs, options) for number, server in enumerate(fleet.servers)}


def _examined(fleet: Fleet, number: int, needs: ServerNeeds, options: ServerOptions) -> dict[str, Any]:
    server, settings = fleet.servers[number], dict[str, Any]()
    try:
        settings, version = fleet.run(_asked(fleet, server, needs))
        wrong = _wrong(server, settings, needs, version)
        options = replace(options, device="cpu" if settings["device_config"]["device"] == "cpu" else "cuda")
    except ServerFault as fault:
        wrong = f"{fault}{_missing(fault)}"
    except (LookupError, TypeError, AttributeError) as error:
        wrong = f"is no vLLM server of a version from 0.32 on ({error!r:.60})"
    if not wrong:
        return settings
    raise InputError(
        f"the server {server.url} {wrong}; start it with: {server_command(server, number, needs, options)}"
    )


async def _asked(fleet: Fleet, server: VLLMServer, needs: ServerNeeds) -> tuple[dict[str, Any], str]:
    """Asks for the model's name, the settings, the routes for tokens and adapters, and whose weights it has."""
    limit = min(LONGEST_S, fleet.timeout_s)
    models = await server.call(fleet.client, "/v1/models", method="GET", limit_s=limit)
    server.model = models["data"][0]["id"]
    info = await server.call(fleet.client, "/server_info?config_format=json", method="GET", limit_s=limit)
    for route in (ROUTE, LOAD_ADAPTERS) if needs.adapter_rank else (ROUTE,):
        try:
            await server.call(fleet.client, route, {}, limit_s=limit)
        except ServerFault as fault:
            if fault.status not in (400, 422):  # of a route that is there, and wants more than an empty request
                raise
    found = await server.call(fleet.client, "/weight_info", method="GET", limit_s=limit)
    return info["vllm_config"], found["weight_version"]


def _missing(fault: ServerFault) -> str:
    if fault.status == 404 and LOAD_ADAPTERS in str(fault):
        return f" ({ADAPTER_ROUTES}=1 opens it, and engine.adapters false sends merged weights)"
    if fault.status == 404:
        return " (VLLM_SERVER_DEV_MODE=1 and --enable-scale-out open what a trainer needs)"
    return " (engine.api_key_env names the variable with the key)" if fault.status == 401 else ""


def _wrong(server: VLLMServer, settings: dict[str, Any], needs: ServerNeeds, version: str) -> str:
    """Says what makes a server unfit; "" if nothing does."""
    model = settings["model_config"]
    on_cpu = settings["device_config"]["device"] == "cpu"
    wanted: dict[str, tuple[object, object]] = {
        "dtype": (model["dtype"].removeprefix("torch."), needs.dtype),
        "logprobs_mode": (model["logprobs_mode"], "processed_logprobs"),
        "generation_config": (model["generation_config"], "vllm"),
    }
    if on_cpu:  # a split prefill draws random numbers that can't be put back
        wanted["enable_chunked_prefill"] = (settings["scheduler_config"]["enable_chunked_prefill"], False)
    else:
        wanted["use_fp64_gumbel"] = (model["use_fp64_gumbel"], True)
    for name, (seen, right) in wanted.items():
        if seen != right:
            return f"has {name} {seen}, and the run needs {right}"
    if model["max_model_len"] < needs.max_model_len:
        return f"takes rows of {model['max_model_len']} tokens, and the run's have up to {needs.max_model_len}"
    rank = (settings.get("lora_config") or {"max_lora_rank": 0})["max_lora_rank"]
    if rank < needs.adapter_rank:
        merged = "engine.adapters false sends merged weights"
        return f"takes adapters up to rank {rank}, and the run's have {needs.adapter_rank} ({merged})"
    if not same_model(model["model"], needs.model):
        return f"has the model {model['model']}, and policy.path is {needs.model}"
    claim = Claim.read(version)
    if claim is not None and claim.is_held:
        return (
            f"gets its weights from {claim.who}, which is running: end that run, or give this one a server of its own at "
            "another address"
        )
    return ""


def same_model(theirs: str, ours: str) -> bool:
    """Whether two folders or names are of one architecture: by their configurations, where both are here, or by name.

    Weights are not compared, as the servers get the policy's.
    """
    files = [Path(each, "config.json") for each in (theirs, ours)]
    if all(each.is_file() for each in files):
        configs = [json.loads(each.read_text(encoding="utf-8")) for each in files]
        first, second = ({k: v for k, v in config.items() if k not in OF_THE_COPY} for config in configs)
        return first == second
    return Path(theirs).name.lower() == Path(ours).name.lower()
