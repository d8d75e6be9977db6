"""Check an answer's receipt, or the proof of a ban, offline."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from .options import Home, Json, print_json, say

if TYPE_CHECKING:
    from ..swarm.proof import Proof


BANS: Final = "bans"  # the folder of a home in which they lie, as node/trust/bans.py has it


def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A receipt of potluck generate, or a ban.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="Whether it is this one: demo, a folder, an id."
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Whether its servers wore this one; none: ''."),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """What an answer's receipt proves: who signed, whether it fits together, what was audited.

    Nothing is asked of any peer. It ends with 1 when a single bit was changed, a signature is
    false, or two servers contradict each other, and says in which line. Of a ban (a file in
    HOME/bans) it says whether its two signatures convict that peer.

    \b
    Example:
      potluck verify answer.receipt
      potluck verify answer.receipt --model demo --json | jq .faults
      potluck verify ~/.potluck/bans/12D3KooW...
    """
    from ..errors import UserError
    from ..swarm.proof import FILE_BYTES_MAX, Fault, check_proof
    from .edge import DONE, FAILED

    try:
        with file.open("rb") as opened:
            raw = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}: give the file of a receipt") from None
    if file.parent.name == BANS:
        _verify_ban(raw, json)
    proof = check_proof(raw)
    if model is not None and proof.answer is not None:
        expected = _digest(model, home)
        if proof.answer.model.hex() != expected:
            proof.faults.append(Fault(0, f"it is of another model than {model} ({expected[:16]})"))
    if adapter is not None and proof.adapters != ((adapter,) if adapter else ()):
        worn = " and ".join(proof.adapters) or "none"
        proof.faults.append(Fault(0, f"its servers wore another adapter than that: {worn}"))
    if json:
        print_json(_facts(proof))
    else:
        _show(proof)
    raise typer.Exit(FAILED if proof.faults else DONE)


def _verify_ban(raw: bytes, json: bool) -> NoReturn:
    from ..errors import RemoteError
    from ..node.trust.bans import proven
    from .edge import DONE, FAILED

    fault = convicted = kind = None
    try:
        convicted, kind = proven(raw)
    except RemoteError as error:
        fault = str(error)
    if json:
        print_json({"good": fault is None, "convicted": convicted, "kind": kind, "fault": fault})
    elif fault is None:
        say(f"{convicted} signed two statements that contradict each other ({kind})")
    else:
        say(f"fault: {fault}")
    raise typer.Exit(DONE if fault is None else FAILED)


def _digest(model: str, home: Path | None) -> str:
    from ..node.compute.checkpoint import open_checkpoint
    from ..node.config import home_of
    from ..node.library import find_model

    place = home_of(home)
    return open_checkpoint(find_model(model, place).source, home=place).digest()


def _facts(proof: Proof) -> dict[str, object]:
    answer = proof.answer
    return {
        "good": proof.good,
        "faults": [{"line": fault.line, "what": fault.what} for fault in proof.faults],
        "client": proof.client,
        "model": None if answer is None else {"name": answer.name, "digest": answer.model.hex()},
        "tokens": None if answer is None else list(answer.tokens),
        "positions": None if answer is None else answer.fed,
        "adapters": list(proof.adapters),
        "signers": [asdict(signer) for signer in proof.signers],
        "links": proof.linked,
        "bare": proof.bare,
        "audited": [asdict(one) for one in proof.audited],
        "audited_share": proof.audited_share,
    }


def _show(proof: Proof) -> None:
    from .tables import print_table

    answer = proof.answer
    if answer is not None:
        say(
            f"{len(answer.tokens) - answer.prompt} tokens of {answer.name} ({answer.model.hex()}),"
            f" as {proof.client} says"
        )
    if proof.signers:
        print_table(
            ("SIGNER", "BLOCKS", "NUMERICS", "CHUNKS>"),
            [(one.peer, one.blocks, one.numerics, str(one.chunks)) for one in proof.signers],
        )
    for worn in proof.adapters:
        say(f"they wore the adapter {worn}")
    for one in proof.audited:
        how = "the receipts show it" if one.shown else "as the client says"
        by = f" by {one.by}" if one.by else ""
        say(
            f"audited{by}: {one.peer}, blocks {one.blocks}, positions {one.at}.."
            f"{one.at + one.tokens}: {one.verdict} ({how})"
        )
    for part in proof.bare:
        say(f"nobody signed for {part}")
    for fault in proof.faults:
        say(f"fault: {fault}")
    if proof.good:
        say(
            f"good: every signature, {proof.linked} links;"
            f" {proof.audited_share:.0%} of the work audited"
        )
    else:
        say("NOT GOOD: do not rely on it")
