"""Who is served next when accounts compete: start-time fair queueing on device time.

Used by the schedulers of the services that own a device. Every account has a virtual time, the
device seconds that it used divided by its weight; the account that is furthest behind goes first.
Time that nobody else wanted is never held against an account, and time that it did not want is
never saved up for it.
Source: Goyal, Vin and Cheng 1996 ("Start-time Fair Queueing").
"""

from __future__ import annotations

from collections.abc import Collection

_LARGEST_WEIGHT_EXPONENT = 6


def priority_weight(priority: int) -> float:
    """Share of an account relative to others: doubles with every class, within 1/64 to 64."""
    return 2.0 ** max(-_LARGEST_WEIGHT_EXPONENT, min(priority, _LARGEST_WEIGHT_EXPONENT))


class FairShare:
    """Virtual times of the accounts, in device seconds per unit of weight."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._floor = 0.0

    def time(self, account: str) -> float:
        """Virtual time of `account`; that of the neediest for one that is new."""
        return self._times.get(account, self._floor)

    def charge(self, account: str, weighted_s: float) -> None:
        """Add device seconds already divided by the weight of the priority."""
        self._times[account] = self.time(account) + weighted_s

    def settle(self, *, hungry: Collection[str], present: Collection[str]) -> None:
        """Close a tick.

        `hungry` accounts wanted more than they got, `present` ones have work left. The satisfied
        are lifted to the neediest of the hungry, and an absent account is forgotten as soon as
        it would gain nothing by coming back.
        """
        if hungry:
            self._floor = max(self._floor, min(self.time(account) for account in hungry))
        else:
            self._floor = max([self._floor, *self._times.values()])
        for account, time in list(self._times.items()):
            if time <= self._floor and account not in hungry:
                if account in present:
                    self._times[account] = self._floor
                else:
                    del self._times[account]

    def __len__(self) -> int:
        """Accounts that are remembered."""
        return len(self._times)
