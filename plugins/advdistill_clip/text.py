"""Class sentences through the text tower, fast and exact.

In a causal tower nothing after the end token matters, and the tokens that all sentences begin with (the start token,
the learned prompts, the words that a template opens with) are the same for every class at every layer. They are
encoded once; only each class's own tokens follow, attending to them. Those are packed side by side, not padded:
linear maps see one long row of tokens, attention takes classes of equal length together. Other towers take the plain
way: every sentence at full length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from advdistill_clip.blocks import finish, is_plain, join_heads, queries_keys_values, split_heads

PLACEHOLDER = 0
"""The id that stands where a learned token goes; its embedding is never used."""


@dataclass(frozen=True)
class Tower:
    """open_clip's text tower, whether it lies in the model itself or in `model.text`.

    Attributes:
        embedding, positions, blocks, norm, projection: its public parts.
        pool: how the sentence's feature is taken: argmax, eos, first, last.
        eos: the end token's id, for `eos`.
        causal: a token sees only itself and what stands before it.
    """

    embedding: nn.Module
    positions: Tensor
    blocks: nn.ModuleList
    norm: nn.Module
    projection: Tensor | nn.Module | None
    pool: str
    eos: int
    causal: bool

    @property
    def packable(self) -> bool:
        """Whether the fast way is exact here."""
        return self.causal and self.pool in ("argmax", "eos") and all(is_plain(block) for block in self.blocks)

    def end(self, ids: Sequence[int]) -> int:
        """Where the pooled token stands in a sentence."""
        if self.pool == "eos":
            return ids.index(self.eos) if self.eos in ids else 0
        return max(range(len(ids)), key=ids.__getitem__)

    def project(self, x: Tensor) -> Tensor:
        """Pooled tokens (C, d) -> features (C, D)."""
        if self.projection is None:
            return x
        return self.projection(x) if isinstance(self.projection, nn.Module) else x @ self.projection


def tower_of(model: nn.Module) -> Tower | None:
    """The text tower of an open_clip model; None where it is of a kind whose parts we do not know (they take no
    prompts and the plain way: Hugging Face towers, CoCa's, towers with padding masks)."""
    root = getattr(model, "text", model)
    if isinstance(root, TextTransformer) and (root.cls_emb is not None or getattr(root, "use_pad_mask", False)):
        return None
    if root is not model and not isinstance(root, TextTransformer):
        return None
    pool, eos = (root.text_pool_type, root.text_eos_id) if root is model else (root.pool_type, root.eos_id)
    return Tower(root.token_embedding, root.positional_embedding, root.transformer.resblocks, root.ln_final,
                 root.text_projection, pool, eos, root.attn_mask is not None)  # fmt: skip


@dataclass(frozen=True)
class Pack:
    """Sentences of some classes, ready for the fast way.

    Attributes:
        prefix: (P,) the ids that all sentences begin with.
        own: (N,) the ids after them up to the end token, class after class, classes of equal length side by side.
        positions: (N,) where each stands in its sentence.
        groups: how many classes, how many own tokens each.
        ends: (C,) where in `own` each class's last token lies.
        order: (C,) the place of each class among the packed ones.
    """

    prefix: Tensor
    own: Tensor
    positions: Tensor
    groups: tuple[tuple[int, int], ...]
    ends: Tensor
    order: Tensor

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]], shared: int, device: torch.device) -> Pack:
        """Pack sentences (ids up to the end token) that have their first `shared` tokens in common."""
        by_length = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        packed = [sentences[i] for i in by_length]
        lengths = [len(ids) - shared for ids in packed]

        def tensor(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long, device=device)

        return cls(
            prefix=tensor(packed[0][:shared]),
            own=tensor([token for ids in packed for token in ids[shared:]]),
            positions=tensor([p for ids in packed for p in range(shared, len(ids))]),
            groups=tuple((len(list(same)), length) for length, same in groupby(lengths)),
            ends=tensor(lengths).cumsum(0) - 1,
            order=tensor(by_length).argsort(),
        )


def _common(sentences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sentences begin with; at least one is left to each."""
    first, last = min(sentences), max(sentences)  # in lexical order whatever those two share, all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(same, min(map(len, sentences)) - 1)


def encode_packed(tower: Tower, pack: Pack, prompts: Tensor | None = None, start: int = 1) -> Tensor:
    """Features of the packed classes.

    Args:
        prompts: (depth, n, d) learned tokens for positions `start` to `start + n`; at the input they get the position
            embedding, in deeper blocks they overwrite what stands there.

    Returns:
        (C, D), not normalised, in the order of the sentences that were packed.
    """
    depth = 0 if prompts is None else len(prompts)
    length = len(pack.prefix)
    prefix = tower.embedding(pack.prefix) + tower.positions[:length]
    own = tower.embedding(pack.own) + tower.positions[pack.positions]
    if prompts is not None:
        prefix = _place(prefix, prompts[0] + tower.positions[start : start + prompts.shape[1]], start)
    for i, block in enumerate(tower.blocks):
        if 0 < i < depth:
            prefix = _place(prefix, prompts[i], start)
        last = i + 1 == len(tower.blocks)
        heads = block.attn.num_heads
        before = [split_heads(x, heads) for x in queries_keys_values(block, prefix)]
        q, k, v = queries_keys_values(block, own)
        # Only the end tokens' features are asked for, so the last block has no other queries.
        mixed = _attend(q[pack.ends] if last else q, k, v, before[1], before[2], pack, heads)
        own = finish(block, own[pack.ends] if last else own, mixed)
        if not last and length:
            mixed = F.scaled_dot_product_attention(*(x[None] for x in before), is_causal=True)[0]
            prefix = finish(block, prefix, join_heads(mixed))
    return tower.project(tower.norm(own))[pack.order]


def _place(x: Tensor, tokens: Tensor, start: int) -> Tensor:
    """(..., L, d) with the n tokens from `start` on replaced by `tokens` (n, d)."""
    tokens = tokens.to(x.dtype).expand(*x.shape[:-2], -1, -1)
    return torch.cat([x[..., :start, :], tokens, x[..., start + tokens.shape[-2] :, :]], dim=-2)


def _attend(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, pack: Pack, heads: int) -> Tensor:
    """Each class's own tokens look at the prefix and, causally, at their own.

    Args:
        q: (N, d), or (C, d) for the end tokens alone.
        k, v: (N, d).
        prefix_k, prefix_v: (heads, P, d / heads).
    """
    seen, ends_only = prefix_k.shape[1], len(q) < len(k)

    def groups(x: Tensor, one_each: bool = False) -> Iterator[Tensor]:
        sizes = [(count, 1 if one_each else length) for count, length in pack.groups]
        parts = x.split([count * length for count, length in sizes])
        return (split_heads(part.unflatten(0, size), heads) for part, size in zip(parts, sizes, strict=True))

    def after(prefix: Tensor, own: Tensor) -> Tensor:
        return torch.cat([prefix.expand(len(own), -1, -1, -1), own], dim=2)

    mixed = []
    for queries, keys, values in zip(groups(q, ends_only), groups(k), groups(v), strict=True):
        length, mask = queries.shape[2], None
        if length > 1:
            mask = torch.ones(length, seen + length, dtype=torch.bool, device=q.device).tril(seen)
        out = F.scaled_dot_product_attention(queries, after(prefix_k, keys), after(prefix_v, values), attn_mask=mask)
        mixed.append(join_heads(out).flatten(0, 1))
    return torch.cat(mixed)


def encode_padded(model: nn.Module, ids: Tensor, prompts: Tensor | None = None, start: int = 1) -> Tensor:
    """Features of sentences at full length, the plain way: (C, L) ids, padded -> (C, D), not normalised.

    Args:
        prompts: (depth, n, d) as in `encode_packed`; they need a tower that `tower_of` knows.
    """
    if prompts is None:
        if not hasattr(model, "text"):
            return model.encode_text(ids)
        out = model.text(ids)
        return out[0] if isinstance(out, tuple) else out
    tower = tower_of(model)
    mask = getattr(model, "text", model).attn_mask
    x = tower.embedding(ids)
    x = _place(x, prompts[0], start) + tower.positions[: ids.shape[1]]
    for i, block in enumerate(tower.blocks):
        x = block(_place(x, prompts[i], start) if 0 < i < len(prompts) else x, attn_mask=mask)
    x = tower.norm(x)
    if tower.pool in ("argmax", "eos"):
        at = [tower.end(row) for row in ids.tolist()]
        x = x[torch.arange(len(x)), at]
    else:
        x = x[:, 0] if tower.pool == "first" else x[:, -1]
    return tower.project(x)


class Sentences:
    """One template's sentences for all classes, tokenised, on one device.

    Args:
        ids: one row of token ids for each class, start and end tokens included, learned tokens as PLACEHOLDER.
        start: where learned tokens begin.
        pad, context: what fills a row, and up to what length, on the plain way.
    """

    def __init__(
        self, model: nn.Module, ids: Sequence[Sequence[int]], start: int, pad: int, context: int, device: torch.device
    ) -> None:
        tower = tower_of(model)
        self.start = start
        self.device = device
        self.pack: Pack | None = None
        if tower is not None and tower.packable:
            self._ids = [tuple(row[: tower.end(row) + 1]) for row in ids]
            self._shared = _common(self._ids)
            self.pack = Pack.of(self._ids, self._shared, device)
        else:
            self._padded = torch.tensor([[*row, *[pad] * (context - len(row))] for row in ids], device=device)

    def encode(self, model: nn.Module, prompts: Tensor | None, rows: Tensor | None) -> Tensor:
        """(C, D) features of all classes, or of `rows`; not normalised."""
        if self.pack is None:
            chunks = (self._padded if rows is None else self._padded[rows]).split(128)
            return torch.cat([encode_padded(model, chunk, prompts, self.start) for chunk in chunks])
        pack = self.pack
        if rows is not None:
            pack = Pack.of([self._ids[i] for i in rows.tolist()], self._shared, self.device)
        return encode_packed(tower_of(model), pack, prompts, self.start)
