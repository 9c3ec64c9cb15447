"""Builds the turns to store from a request, its plan and its reply. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.core.model import (
    CARRIES,
    FLAGS,
    SIDE,
    SPLICED,
    STREAM,
    TOOLS,
    Ask,
    Message,
    Reply,
    TrimPoint,
    Turn,
    TurnState,
    has_tools,
)
from proxy.core.plan import Plan
from proxy.dialects.chat.compose import Rendering, render_reply
from proxy.dialects.chat.fingerprints import fingerprint


def turns_of(
    ask: Ask,
    plan: Plan,
    reply: Reply,
    rendering: Rendering,
    *,
    id: str,
    new_id: Callable[[], str],
    remembered: bytes | None,
    request: bytes,
    idempotency_key: str | None = None,
    state: TurnState = TurnState.COMPLETE,
    trim_point: TrimPoint | None = None,
    trimmed_for: str = "",
    started: int = 0,
    ended: int = 0,
) -> list[Turn]:
    """The turn `id`, behind those that its list brought along (they get IDs by `new_id`).

    `remembered` is the system block in force at the parent, `request` the digest of the body, `trim_point` where its
    window begins if that is new and `trimmed_for` what that was made for, the times are in ms since the epoch. Marks
    are taken where the list carried a history: of another client's messages nobody may ever need them.
    """
    turns: list[Turn] = []
    traits = _traits(ask, plan)
    for messages in plan.adopted:
        *asked, answer = fingerprinted(messages)
        block = plan.system or b"" if not turns and plan.system != remembered else None
        turns.append(
            Turn(
                id=new_id(),
                system=block,
                asked=tuple(asked),
                reply=answer.raw,
                rendered=answer,
                parent=turns[-1].id if turns else plan.parent,
                state=TurnState.ADOPTED,
                rendering_key=rendering.key,
                model=ask.model,
                started=started,
                ended=started,
                client=plan.client,
                traits=traits & ~(CARRIES | SPLICED),
            )
        )
    carried = plan.resends or bool(turns)
    raw = reply.message or b"null"
    said = render_reply(raw, rendering, finish_reason=reply.finish_reason, state=state, now=ended)
    turn = Turn(
        id=id,
        system=plan.system or b"" if not turns and plan.system != remembered else None,
        asked=fingerprinted(plan.asked) if carried else tuple(plan.asked),
        reply=raw,
        rendered=None if said is None else Message("assistant", said, fingerprint(said) if carried else b""),
        parent=turns[-1].id if turns else plan.parent,
        layout=plan.layout,
        state=state,
        rendering_key=rendering.key,
        request=request,
        idempotency_key=idempotency_key,
        resends=plan.resends,
        model=reply.model or ask.model,
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        trim_point=trim_point,
        trimmed_for=trimmed_for if trim_point else "",
        started=started,
        ended=ended,
        client=plan.client,
        traits=traits,
    )
    return [*turns, turn]


def _traits(ask: Ask, plan: Plan) -> int:
    traits = CARRIES if plan.carries_history else 0
    if plan.side:
        traits |= SIDE
    if plan.spliced:
        traits |= SPLICED
    if ask.stream:
        traits |= STREAM
    return traits | TOOLS | len(ask.tools) << FLAGS if ask.tools and has_tools(ask.tools) else traits


def fingerprinted(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages with their fingerprints, by which a client's later copies are recognised."""
    return tuple([one if one.fingerprint else Message(one.role, one.raw, fingerprint(one.raw)) for one in messages])
