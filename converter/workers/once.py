"""Keep what was read before the output was begun, so that no file is read twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from converter.samples import Batch, Encoded, KeyList, Portions, Result, Run

#: A smaller array is read again sooner than its neighbours are cut into batches of their own.
SMALLEST_NBYTES = 64 << 10
MOST_NBYTES = 64 << 20
FEWEST_KEPT = 4  # however large


class ReadOnce:
    """Gives each sample as a `Run` does; what it gave before `begin` comes from memory again.

    Of the first samples at least `FEWEST_KEPT` are kept, and more up to `MOST_NBYTES`; none whose
    payload has less than ``least_nbytes``.
    """

    def __init__(self, run: Run, least_nbytes: int = 0) -> None:
        self._run, self._least_nbytes = run, least_nbytes
        self._kept: dict[str, tuple[Result, bytes]] = {}
        self._nbytes = 0
        self._is_keeping = True

    def begin(self) -> None:
        """Keep no more: what is given now is written."""
        self._is_keeping = False

    def run(self, keys: Sequence[str]) -> Iterator[Batch]:
        """Yield the results of all keys in order."""
        if not self._kept:
            for batch in self._run(keys):
                self._keep(batch)
                yield batch
            return
        unread = KeyList()
        for key in keys:
            if key not in self._kept:
                unread.append(key.encode())
        fresh = Portions(self._run(unread))
        count = 0
        for key in keys:
            if key not in self._kept:
                count += 1
                continue
            yield from self._take(fresh, count)
            count = 0
            result, payload = self._kept[key]
            if not self._is_keeping:
                del self._kept[key]
            yield Batch([result], memoryview(bytearray(payload)))
        yield from self._take(fresh, count)
        fresh.finish()

    def _take(self, fresh: Portions, count: int) -> Iterator[Batch]:
        for batch in fresh.take(count):
            self._keep(batch)
            yield batch

    def _keep(self, batch: Batch) -> None:
        begin = 0
        for result in batch.results if self._is_keeping else ():
            end = begin + (result.record_nbytes if isinstance(result, Encoded) else 0)
            is_wanted = self._nbytes < MOST_NBYTES or len(self._kept) < FEWEST_KEPT
            if is_wanted and end - begin >= self._least_nbytes:
                self._kept[result.key] = result, bytes(batch.payload[begin:end])
                self._nbytes += end - begin
            begin = end
