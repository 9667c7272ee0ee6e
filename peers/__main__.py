"""Hold every peer that is installed to what it documents, and write docs/peers.md: ``python -m peers [peer ...]``.

Without an argument all are held, and the page is written; with some, their tables are printed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from attnlab import check_attention
from attnlab.errors import UnknownNameError, UserError
from peers.adapters import PEERS, D
from peers.page import COMMON, FOUND, PAGE, found_of, write


def main(names: list[str]) -> int:
    """0; 2 for a peer that does not exist or is not installed."""
    try:
        for name in names:
            if name not in PEERS:
                raise UnknownNameError("peer", name, PEERS)
        rows = {}
        for name in names or PEERS:
            peer = PEERS[name]
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                report = check_attention(
                    peer.make,
                    embed_dim=D,
                    call=peer.call,
                    claims=peer.claims,
                    only=[promise for promise in COMMON if promise not in peer.unfair],
                    raises=False,
                )
            except UserError as error:
                raise UserError(f"{peer.package} cannot be held: {error}; pip install 'attnlab[peers]'") from None
            rows[name] = found_of(peer, report)
            if names:
                print(report)
        if not names:
            FOUND.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            PAGE.write_text(write(), encoding="utf-8")
            print(f"written: {PAGE.relative_to(Path.cwd())}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
