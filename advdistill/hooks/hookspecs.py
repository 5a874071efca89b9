"""The eight hooks of advdistill. Each yields specs; none registers, imports torch, or does work."""

from __future__ import annotations

import pluggy

hookspec = pluggy.HookspecMarker("advdistill")
hookimpl = pluggy.HookimplMarker("advdistill")
