"""Places and the queue, without HTTP."""

from __future__ import annotations

import asyncio

import pytest

from tests.serving.conftest import run_async
from tunesmith.core.errors import ServiceError
from tunesmith.serving.admission import Admission, Busy, Limits


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_first_come_first_served_and_never_more_than_the_places():
    async def run() -> None:
        admission, order, most = Admission(Limits(waiting=50), 3), [], []

        async def one(number: int, answers: int) -> None:
            async with admission.place(answers, 1):
                order.append(number)
                most.append(admission.running)
                await settle()

        await asyncio.gather(*(one(number, 1 + number % 3) for number in range(20)))
        assert order == list(range(20))
        assert max(most) <= 3
        assert (admission.running, admission.waiting, admission.answered) == (0, 0, 20)
        assert admission.empty.is_set()

    run_async(run())


def test_a_request_for_more_answers_than_places_takes_all_of_them():
    async def run() -> None:
        admission = Admission(Limits(), 2)
        async with admission.place(8, 1):
            assert admission.running == 2
        assert admission.running == 0

    run_async(run())


@pytest.mark.parametrize("moment", ["waiting", "turn has come", "turn comes while it is cancelled"])
def test_cancelling_in_the_queue_loses_no_place(moment):
    async def run() -> None:
        admission = Admission(Limits(), 1)
        held = admission.place(1, 1)
        await held.__aenter__()

        async def wait() -> None:
            async with admission.place(1, 1):
                await asyncio.sleep(10)

        first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
        await settle()
        assert admission.waiting == 2
        if moment == "turn has come":
            await held.__aexit__(None, None, None)  # wakes the first, which is cancelled before it runs
            first.cancel()
        elif moment == "turn comes while it is cancelled":
            first.cancel()
            await held.__aexit__(None, None, None)
        else:
            first.cancel()
            await settle()
            await held.__aexit__(None, None, None)
        await settle()
        assert (admission.running, admission.waiting) == (1, 0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert admission.running == 0

    run_async(run())


def test_who_waits_too_long_is_told_to_come_back():
    async def run() -> None:
        admission = Admission(Limits(waiting_seconds=0.02), 1)
        async with admission.place(1, 1):
            with pytest.raises(Busy, match="had no time"):
                async with admission.place(1, 1):
                    pass
        assert (admission.running, admission.waiting) == (0, 0)

    run_async(run())


def test_draining_refuses_the_new_and_keeps_the_old():
    async def run() -> None:
        admission = Admission(Limits(), 1)
        turns = []

        async def wait() -> None:
            async with admission.place(1, 1):
                turns.append(1)

        async with admission.place(1, 1):
            waiter = asyncio.create_task(wait())
            await settle()
            admission.drain()
            with pytest.raises(ServiceError, match="is stopping"):
                async with admission.place(1, 1):
                    pass
            assert not admission.empty.is_set()
        await waiter
        assert turns == [1]
        assert admission.empty.is_set()

    run_async(run())
