"""The batch engine against a model that unmaps one mapping at a time, with a kernel that refuses or lies."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.iommu.fake_backend import PAGE, FakeBackend
from vfio_user.addresses import PciAddress
from vfio_user.errors import VfioError
from vfio_user.iommu import AddressSpace, DmaMapping, address_space
from vfio_user.kernel.sysfs import PciFunction

PAGES = 24
BASE = 0x10_0000


class Batches(RuleBasedStateMachine):
    """After each batch the books say what the model says, and never less than the kernel has."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = FakeBackend()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(address_space, "open_backend", lambda mode: self.backend)
            self.space = AddressSpace("type1v2")
        self.space.attach(PciFunction(PciAddress(0, 1, 0, 0))).close()
        self.live: dict[DmaMapping, mmap.mmap] = {}

    @rule(first=st.integers(0, PAGES - 1), pages=st.integers(1, 3))
    def map(self, first: int, pages: int) -> None:
        iova, size = BASE + first * PAGE, pages * PAGE
        if any(iova < each.iova + each.size and each.iova < iova + size for each in self.live):
            return
        memory = mmap.mmap(-1, size)
        self.live[self.space.map(memory, iova=iova)] = memory

    @precondition(lambda self: bool(self.live))
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.sampled_from(list(self.live)), min_size=1))
        before = len(self.backend.calls)
        size = sum(each.size for each in set(wanted))
        assert self.space.unmap_many(wanted) == size
        calls = self.backend.calls[before:]
        if len(set(wanted)) < len(self.live):
            assert calls == ["unmap"] * self.num_runs(wanted)
        for mapping in set(wanted):
            del self.live[mapping]

    @staticmethod
    def num_runs(wanted: list[DmaMapping]) -> int:
        ends = {each.iova + each.size for each in wanted}
        return sum(each.iova not in ends for each in set(wanted))

    @precondition(lambda self: bool(self.live))
    @rule(data=st.data())
    def unmap_what_is_refused(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.sampled_from(list(self.live)), min_size=1, unique=True))
        bad = data.draw(st.lists(st.sampled_from(wanted), min_size=1, unique=True))
        self.backend.refused = {each.iova for each in bad}
        with pytest.raises(ExceptionGroup) as caught:
            self.space.unmap_many(wanted)
        self.backend.refused = set()
        assert len(caught.value.exceptions) == len(bad)
        assert all(isinstance(error, VfioError) for error in caught.value.exceptions)
        for mapping in set(wanted) - set(bad):
            del self.live[mapping]

    @precondition(lambda self: bool(self.live))
    @rule(data=st.data())
    def unmap_what_stays(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.sampled_from(list(self.live)), min_size=1, unique=True))
        bad = data.draw(st.sampled_from(wanted))
        self.backend.stuck = {bad.iova}
        with pytest.raises(ExceptionGroup):
            self.space.unmap_many(wanted)
        self.backend.stuck = set()
        assert bad.mapped
        # Whose end is not sure stays in the books; put it back into the kernel's, so that all agree again.
        for mapping in self.space.mappings:
            if mapping.iova not in self.backend.mapped:
                self.backend.mapped[mapping.iova] = (mapping.vaddr or 0, mapping.size, True, True)
        self.live = {each: memory for each, memory in self.live.items() if each.mapped}

    @rule()
    def unmap_all(self) -> None:
        assert self.space.unmap_all() == sum(each.size for each in self.live)
        self.live.clear()

    @invariant()
    def books_agree(self) -> None:
        assert set(self.space.mappings) == set(self.live)
        assert {each.iova: each.size for each in self.live} == {
            iova: size for iova, (_, size, _, _) in self.backend.mapped.items()
        }
        free = self.space._mapper.books.allocator
        assert free is not None
        whole = sum(each.size for each in free.ranges)
        assert whole - free.free_bytes == sum(each.size for each in self.live)

    @invariant()
    def memory_is_kept_while_mapped(self) -> None:
        for mapping, memory in self.live.items():
            with pytest.raises(BufferError):
                memory.close()
            assert mapping.mapped

    def teardown(self) -> None:
        self.space.close()
        assert self.backend.mapped == {}
        self.space.detach()


Batches.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestBatches = Batches.TestCase
