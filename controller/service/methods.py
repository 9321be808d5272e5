"""MethodService: the installed plugins, from their torch-free halves."""

# ruff: noqa: N802  methods are named like the RPCs

from __future__ import annotations

import asyncio
import difflib
from dataclasses import asdict
from functools import cache
from typing import Any

from luthier.controller.service.names import last_segment, wrong_field
from luthier.controller.store.pages import page_limit, scope_of, token_for, token_key
from luthier.errors import NotFound
from luthier.methods.registry import all_specs
from luthier.methods.spec_api import Spec
from luthier.v1 import method_service_pb2, method_service_pb2_grpc

__all__ = ["MethodService"]

_SLOTS = ("method", "objective", "adapter", "recipe")


class MethodService(method_service_pb2_grpc.MethodServiceServicer):
    """Describes what can be run here."""

    async def ListMethods(self, request: method_service_pb2.ListMethodsRequest, context: Any) -> method_service_pb2.ListMethodsResponse:
        limit = page_limit(request.page_size)
        if request.slot and request.slot not in _SLOTS:
            raise wrong_field("slot", f"there is no slot {request.slot!r}", f"use one of {', '.join(_SLOTS)}, or leave it out")
        scope = scope_of("methods", request.slot)
        infos = await asyncio.to_thread(_infos)
        found = [info for info in infos if not request.slot or info.slot == request.slot]
        if request.page_token:
            place = tuple(token_key(request.page_token, scope, (int, str)))
            found = [info for info in found if _place(info) > place]
        token = token_for(scope, list(_place(found[limit - 1]))) if len(found) > limit else ""
        return method_service_pb2.ListMethodsResponse(methods=found[:limit], next_page_token=token)

    async def GetMethod(self, request: method_service_pb2.GetMethodRequest, context: Any) -> method_service_pb2.MethodInfo:
        name = last_segment(request.name, "methods", "name")
        infos = await asyncio.to_thread(_infos)
        for info in infos:
            if info.name == f"methods/{name}":
                return info
        names = sorted(info.name.removeprefix("methods/") for info in infos)
        near = difflib.get_close_matches(name, names, 1)
        fix = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(names)}"
        raise NotFound(f"there is no method {name!r}", fix=fix, metadata={"method": name})


def _place(info: method_service_pb2.MethodInfo) -> tuple[int, str]:
    """By slot and name."""
    return _SLOTS.index(info.slot), info.name


@cache
def _infos() -> tuple[method_service_pb2.MethodInfo, ...]:
    """All plugins in order. Built once: schemas cost milliseconds each, and plugins do not change while the process lives."""
    return tuple(sorted((_info(spec) for spec in all_specs().values()), key=_place))


def _info(spec: Spec) -> method_service_pb2.MethodInfo:
    info = method_service_pb2.MethodInfo(
        name=f"methods/{spec.name}", version=spec.version, slot=spec.slot, summary=spec.summary, paper=spec.paper, example=spec.example
    )
    info.parameters.update(spec.params.model_json_schema())
    needs = asdict(spec.needs(spec.params()))
    info.needs.update({name: sorted(value) if isinstance(value, frozenset) else value for name, value in needs.items()})
    if spec.alias is not None:
        combination = {"method": spec.alias.method, "objective": spec.alias.objective, "adapter": spec.alias.adapter}
        info.resolves_to.update({slot: name for slot, name in combination.items() if name})
    return info
