"""The part of a row that one warp sums and perhaps searches, as in ``cuda/piece.h``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rsk.course.python_kernels.call import Row
from rsk.course.python_kernels.gpu import CHUNK, LANES, TILE, Thread
from rsk.course.python_kernels.tile import Tile
from rsk.course.python_kernels.warp import Totals, running_sum


class Cut(NamedTuple):
    """How a row is cut: a piece for each warp, and that in stretches for its lanes."""

    piece: int
    """Length: whole chunks, so only the row's end is ragged."""
    stretch: int
    """Length: whole tiles."""


@dataclass
class Piece:
    """Part of a row, for one warp."""

    begin: int
    end: int
    stretch: int
    """Length of a stretch."""
    total: int = 0
    """Of this lane's stretch."""


def cut_row(size: int, count: int) -> Cut:
    """Cut a row of ``size`` elements into ``count`` pieces."""
    chunks = -(-size // CHUNK)
    piece = -(-chunks // count) * CHUNK
    return Cut(piece, -(-piece // (LANES * TILE)) * TILE)


def piece_of_row(size: int, i: int, cut: Cut) -> Piece:
    """Piece i of a row; those behind its end are empty."""
    begin, end = i * cut.piece, (i + 1) * cut.piece
    return Piece(min(begin, size), min(end, size), cut.stretch)


def sum_piece(row: Row, piece: Piece, tile: Tile, lane: int) -> Thread:
    """The sum of the piece's weights; the tile that was read last is left in ``tile``."""
    own = piece.begin + lane * piece.stretch
    piece.total = total = 0
    tile.begin = -1
    for start in range(piece.begin, piece.end, TILE):
        of_tile = yield from tile.add(row, start, piece.end, lane)
        if own <= start < own + piece.stretch:
            piece.total += of_tile
        total += of_tile
    return total


def find_token(row: Row, piece: Piece, tile: Tile, rest: int, lane: int) -> Thread:
    """The token; what is in ``tile`` is not read again."""
    begin = piece.begin
    if piece.stretch < piece.end - piece.begin:
        stretches = Totals((yield from running_sum(piece.total, lane)), 0)
        chosen, rest = yield from stretches.choose(rest)
        begin += chosen * piece.stretch
    for start in range(begin, piece.end, TILE):
        if tile.begin != start:
            yield from tile.add(row, start, piece.end, lane)
        token, rest = yield from tile.find(row, piece.end, rest, lane)
        if token >= 0:
            return token
    raise AssertionError("the piece was chosen because the token is in it")
