"""Windows of which a process has only a part, for the time when every process counts alone."""

from __future__ import annotations

from ..core.model import NO_LIMITS, Limits
from ..core.windows import Quota

__all__ = ["quota_of_share"]


def quota_of_share(share: float) -> type[Quota]:
    """Make windows of which only a *share* of each limit is this process's, one at the least."""

    def part(limit: int | None) -> int | None:
        return None if limit is None else min(limit, max(1, int(limit * share)))

    class PartOfQuota(Quota):
        __slots__ = ()

        def limits(self, configured: Limits) -> Limits:
            whole = super().limits(configured)
            return whole if whole is NO_LIMITS else Limits(*map(part, whole))

    return PartOfQuota
