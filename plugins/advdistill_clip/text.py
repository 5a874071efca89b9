"""Class sentences through the text tower, fast and exact.

In a causal tower nothing after the end token matters, and the tokens that all sentences begin with (the start token,
the learned prompts, the words that a template opens with) are the same for every class at every layer. They are
encoded once; only each class's own tokens follow, attending to them. Those are packed side by side, not padded:
linear maps see one long row of tokens, attention takes classes of equal length together. Contexts that each class has
for itself stand among its own tokens; all that such sentences share is the start token. Other towers take the plain
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

from advdistill import UsageError
from advdistill_clip.blocks import NONE, Adapters, finish, is_plain, join_heads, queries_keys_values, run, split_heads
from advdistill_clip.tokens import Tokenizer

PLACEHOLDER = 0
"""The id that stands where a learned token goes; its embedding is never used."""


def make_room(
    tokenizer: Tokenizer, ids: Sequence[Sequence[int]], template: str, tokens: int, replace: bool
) -> list[list[int]]:
    """Sentences with PLACEHOLDER where learned tokens go: after the start token, if the tokenizer sets one.

    Args:
        ids: one row of token ids for each class.
        template: what they were made from, with {} for the name.
        tokens: how many are learned.
        replace: they take the place of the sentence's first tokens; else they stand before them.

    Raises:
        UsageError: there are not as many tokens to replace before the name.
    """
    start, taken = tokenizer.start, tokens if replace else 0
    opening = words(tokenizer, template.partition("{}")[0])
    if len(opening) < taken:
        raise UsageError(
            f"template {template!r} has {len(opening)} tokens before the name; {taken} learned ones replace them",
            'use a template like "a photo of a {}.", fewer text tokens, or text.init: ""',
        )
    return [[*row[:start], *[PLACEHOLDER] * tokens, *row[start + taken :]] for row in ids]


def words(tokenizer: Tokenizer, phrase: str) -> list[int]:
    """The ids of a phrase without start and end tokens."""
    ids = tokenizer([phrase])[0]
    return ids[tokenizer.start : len(ids) - tokenizer.end]


@dataclass(frozen=True)
class Tower:
    """open_clip's text tower, whether it lies in the model itself or in `model.text`.

    Attributes:
        embedding, positions, blocks, norm, projection: its public parts.
        pool: how the sentence's feature is taken: argmax, eos, first, last.
        eos: the end token's id, for `eos`.
        causal: (L, L) additive mask by which a token sees only itself and what stands before it; None: it sees all.
        summary: (d,) a token that is appended to every sentence and pooled (CoCa's); None: there is none.
        pad: the id that attention does not see; None: it sees all ids.
        shifted: the mask of padding is one place off, as CoCa's weights were trained.
    """

    embedding: nn.Module
    positions: Tensor
    blocks: nn.ModuleList
    norm: nn.Module
    projection: Tensor | nn.Module | None
    pool: str
    eos: int
    causal: Tensor | None
    summary: Tensor | None = None
    pad: int | None = None
    shifted: bool = False

    @property
    def packable(self) -> bool:
        """Whether the fast way is exact here."""
        pooled_at_end = self.summary is None and self.pool in ("argmax", "eos")
        return self.causal is not None and pooled_at_end and all(is_plain(block) for block in self.blocks)

    def end(self, ids: Sequence[int]) -> int:
        """Where the pooled token stands in a sentence."""
        if self.pool == "eos":
            return ids.index(self.eos) if self.eos in ids else 0
        return max(range(len(ids)), key=ids.__getitem__)

    def mask(self, ids: Tensor, learned: slice) -> Tensor | None:
        """What attention may not see: -inf where it may not; (L, L), or (C * heads, L, L) where padding is masked.

        Args:
            ids: (C, L), padded.
            learned: where learned tokens stand; they are seen whatever the ids there.
        """
        if self.pad is None:
            return self.causal
        seen = ids != self.pad
        seen[:, learned] = True
        if self.summary is not None:
            always = seen.new_ones(len(seen), 1)
            seen = torch.cat([always, seen] if self.shifted else [seen, always], dim=1)
        length, heads = seen.shape[1], self.blocks[0].attn.num_heads
        hidden = torch.zeros(seen.shape, device=ids.device).masked_fill(~seen, float("-inf"))
        hidden = hidden[:, None].expand(-1, length, -1).repeat_interleave(heads, 0)
        return hidden if self.causal is None else hidden + self.causal

    def pooled(self, x: Tensor, ids: Tensor) -> Tensor:
        """(C, L, d) tokens of padded sentences (C, L) -> (C, d)."""
        if self.summary is None and self.pool in ("argmax", "eos"):
            at = ids.argmax(-1) if self.pool == "argmax" else (ids == self.eos).int().argmax(-1)
            return x[torch.arange(len(x), device=x.device), at]
        return x[:, 0] if self.summary is None and self.pool == "first" else x[:, -1]

    def project(self, x: Tensor) -> Tensor:
        """Pooled tokens (C, d) -> features (C, D)."""
        if self.projection is None:
            return x
        return self.projection(x) if isinstance(self.projection, nn.Module) else x @ self.projection


def tower_of(model: nn.Module) -> Tower | None:
    """The text tower of an open_clip model; None where it is a foreign module (a Hugging Face tower), whose parts we
    do not know: it takes no prompts and the plain way."""
    root = getattr(model, "text", model)
    if root is not model and not isinstance(root, TextTransformer):
        return None
    pool, eos = (root.text_pool_type, root.text_eos_id) if root is model else (root.pool_type, root.eos_id)
    summary = getattr(root, "cls_emb", None)
    masks_padding = summary is not None or getattr(root, "use_pad_mask", False)
    return Tower(root.token_embedding, root.positional_embedding, root.transformer.resblocks, root.ln_final,
                 root.text_projection, pool, eos, root.attn_mask, summary,
                 root.pad_id if masks_padding else None, not getattr(root, "correct_cls_mask", False))  # fmt: skip


def text_prompts_fit(model: nn.Module) -> tuple[int, int]:
    """Width of a text prompt, and how many blocks it can be put in front of.

    Raises:
        UsageError: the text tower is foreign, see `tower_of`.
    """
    tower = tower_of(model)
    if tower is None:
        raise UsageError(
            f"a text tower of the kind {type(model.text).__name__} is not open_clip's own: no prompts can join it",
            "set text.tokens: 0, or take a model with a text tower of open_clip's",
        )
    return tower.positions.shape[1], len(tower.blocks)


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
        starts: (C,) where in `own` each class's tokens begin, in the order of the sentences that were packed.
    """

    prefix: Tensor
    own: Tensor
    positions: Tensor
    groups: tuple[tuple[int, int], ...]
    ends: Tensor
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]], shared: int, device: torch.device) -> Pack:
        """Pack sentences (ids up to the end token) that have their first `shared` tokens in common."""
        by_length = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        packed = [sentences[i] for i in by_length]
        lengths = [len(ids) - shared for ids in packed]

        def tensor(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long, device=device)

        ends, order = tensor(lengths).cumsum(0) - 1, tensor(by_length).argsort()
        return cls(
            prefix=tensor(packed[0][:shared]),
            own=tensor([token for ids in packed for token in ids[shared:]]),
            positions=tensor([p for ids in packed for p in range(shared, len(ids))]),
            groups=tuple((len(list(same)), length) for length, same in groupby(lengths)),
            ends=ends,
            order=order,
            starts=(ends - tensor(lengths) + 1)[order],
        )


def _common(sentences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sentences begin with; at least one is left to each."""
    first, last = min(sentences), max(sentences)  # in lexical order whatever those two share, all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(same, min(map(len, sentences)) - 1)


def encode_packed(
    tower: Tower, pack: Pack, prompts: Tensor | None = None, start: int = 1, adapters: Sequence[Adapters] = ()
) -> Tensor:
    """Features of the packed classes.

    Args:
        prompts: learned tokens for positions `start` to `start + n`, (depth, n, d) for all classes alike, or
            (depth, C, n, d) for each its own, in the order of the sentences that were packed after their first `start`
            tokens. At the input they get the position embedding, in deeper blocks they overwrite what stands there.
        adapters: what is added to linear maps, block by block; or nothing.

    Returns:
        (C, D), not normalised, in the order of the sentences that were packed.
    """
    depth = 0 if prompts is None else len(prompts)
    length = len(pack.prefix)
    prefix = tower.embedding(pack.prefix) + tower.positions[:length]
    own = tower.embedding(pack.own) + tower.positions[pack.positions]

    def placed(tokens: Tensor) -> tuple[Tensor, Tensor]:
        if tokens.ndim == 2:
            return _place(prefix, tokens, start), own
        slots = pack.starts[:, None] + torch.arange(tokens.shape[1], device=own.device)
        return prefix, own.index_copy(0, slots.flatten(), tokens.flatten(0, 1).to(own.dtype))

    if prompts is not None:
        prefix, own = placed(prompts[0] + tower.positions[start : start + prompts.shape[-2]])
    for i, block in enumerate(tower.blocks):
        if 0 < i < depth:
            prefix, own = placed(prompts[i])
        last = i + 1 == len(tower.blocks)
        heads, added = block.attn.num_heads, adapters[i] if adapters else NONE
        before = [split_heads(x, heads) for x in queries_keys_values(block, prefix, added)]
        q, k, v = queries_keys_values(block, own, added)
        # Only the end tokens' features are asked for, so the last block has no other queries.
        mixed = _attend(q[pack.ends] if last else q, k, v, before[1], before[2], pack, heads)
        own = finish(block, own[pack.ends] if last else own, mixed, added)
        if not last and length:
            mixed = F.scaled_dot_product_attention(*(x[None] for x in before), is_causal=True)[0]
            prefix = finish(block, prefix, join_heads(mixed), added)
    return tower.project(tower.norm(own))[pack.order]


def _place(x: Tensor, tokens: Tensor, start: int) -> Tensor:
    """(..., L, d) with the n tokens from `start` on replaced by `tokens`, (n, d) or (..., n, d)."""
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


def encode_padded(
    model: nn.Module, ids: Tensor, prompts: Tensor | None = None, start: int = 1, adapters: Sequence[Adapters] = ()
) -> Tensor:
    """Features of sentences at full length, the plain way: (C, L) ids, padded -> (C, D), not normalised.

    Args:
        prompts: (depth, n, d) or (depth, C, n, d) as in `encode_packed`. They and adapters need a tower that
            `tower_of` knows.
        adapters: what is added to linear maps, block by block; or nothing.
    """
    if prompts is None and not adapters:
        if not hasattr(model, "text"):
            return model.encode_text(ids)
        out = model.text(ids)
        return out[0] if isinstance(out, tuple) else out
    tower = tower_of(model)
    x, depth, learned = tower.embedding(ids), 0, slice(start, start)
    if prompts is not None:
        depth, learned = len(prompts), slice(start, start + prompts.shape[-2])
        x = _place(x, prompts[0], start)
    if tower.summary is not None:
        x = torch.cat([x, tower.summary.expand(len(x), 1, -1)], dim=1)
    x = x + tower.positions[: x.shape[1]]
    mask = tower.mask(ids, learned)
    for i, block in enumerate(tower.blocks):
        x = _place(x, prompts[i], start) if 0 < i < depth else x
        x = run(block, x, None, adapters[i] if adapters else NONE, attn_mask=mask)
    return tower.project(tower.norm(tower.pooled(x, ids)))


class Sentences:
    """One template's sentences for all classes, tokenised, on one device.

    Args:
        ids: one row of token ids for each class, start and end tokens included, learned tokens as PLACEHOLDER.
        start: where learned tokens begin.
        pad, context: what fills a row, and up to what length, on the plain way.
        contexts: (C,) long, which of the class-specific contexts each class has; None: all classes share theirs.
    """

    def __init__(
        self,
        model: nn.Module,
        ids: Sequence[Sequence[int]],
        start: int,
        pad: int,
        context: int,
        device: torch.device,
        contexts: Tensor | None = None,
    ) -> None:
        tower = tower_of(model)
        self.start = start
        self.device = device
        self.contexts = contexts
        self.pack: Pack | None = None
        self._packs: dict[bytes, Pack] = {}
        if tower is not None and tower.packable:
            self._ids = [tuple(row[: tower.end(row) + 1]) for row in ids]
            self._shared = _common(self._ids) if contexts is None else start
            self.pack = Pack.of(self._ids, self._shared, device)
        else:
            self._padded = torch.tensor([[*row, *[pad] * (context - len(row))] for row in ids], device=device)

    def encode(
        self, model: nn.Module, prompts: Tensor | None, rows: Tensor | None, adapters: Sequence[Adapters] = ()
    ) -> Tensor:
        """(C, D) features of all classes, or of `rows`; not normalised.

        Args:
            prompts: (depth, n, d), or (depth, contexts, n, d) where classes have their own.
            adapters: what is added to linear maps, block by block; or nothing.
        """
        if prompts is not None and self.contexts is not None:
            prompts = prompts[:, self.contexts if rows is None else self.contexts[rows]]
        if self.pack is None:
            padded = self._padded if rows is None else self._padded[rows]
            chunks = torch.arange(len(padded), device=self.device).split(128)
            return torch.cat(
                [encode_padded(model, padded[some], _of(prompts, some), self.start, adapters) for some in chunks]
            )
        pack = self.pack if rows is None else self._pack_of(rows)
        return encode_packed(tower_of(model), pack, prompts, self.start, adapters)

    def _pack_of(self, rows: Tensor) -> Pack:
        """Packed once: the same chunks of classes are asked for at every step, together all classes. There is room for
        twice as many; what was asked for first goes first."""
        key = rows.cpu().numpy().tobytes()
        if key not in self._packs:
            room = 2 * len(self._ids) * rows.element_size() - len(key)
            while self._packs and sum(map(len, self._packs)) > room:
                del self._packs[next(iter(self._packs))]
            self._packs[key] = Pack.of([self._ids[i] for i in rows.tolist()], self._shared, self.device)
        return self._packs[key]


def _of(prompts: Tensor | None, classes: Tensor) -> Tensor | None:
    """The prompts of some classes, which may be those of all."""
    return prompts if prompts is None or prompts.ndim == 3 else prompts[:, classes]


def class_features(
    model: nn.Module,
    templates: Sequence[Sentences],
    prompts: Tensor | None = None,
    rows: Tensor | None = None,
    adapters: Sequence[Adapters] = (),
) -> Tensor:
    """(C, D) unit-norm features of all classes, or of `rows`: the mean over templates of unit features, in float32."""
    encoded = [sentences.encode(model, prompts, rows, adapters) for sentences in templates]
    units = [F.normalize(at_least_fp32(features), dim=-1) for features in encoded]
    return units[0] if len(units) == 1 else F.normalize(torch.stack(units).mean(0), dim=-1)


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
